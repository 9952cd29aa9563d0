# SPDX-License-Identifier: Apache-2.0
"""Schema of the images, and the modules generated from it (`criu_pb2`, `rpc_pb2`)."""
