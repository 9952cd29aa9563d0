# SPDX-License-Identifier: Apache-2.0
"""The runtime hook: a gRPC service on a node-local socket."""
