# SPDX-License-Identifier: Apache-2.0
"""Protocols of the plugin: modules generated from the .proto files beside this one."""
