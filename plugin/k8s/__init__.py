# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as agent, controller and kubectl plugin use it."""
