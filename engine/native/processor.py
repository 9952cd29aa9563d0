# SPDX-License-Identifier: Apache-2.0
"""What this processor can do, and the layout of its extended state."""

import struct

from torpor.engine.native.seam import ffi, lib

LAST_COMPONENT = 32
LEGACY_FEATURES = 3


def xstate_components() -> list[tuple[int, int, int]]:
    """(number, offset, size) of every XSAVE component that the kernel has enabled."""
    features = ffi.new("uint64_t *")
    lib.seam_xsave_size(features)
    found: list[tuple[int, int, int]] = []
    offset, size = ffi.new("unsigned int *"), ffi.new("unsigned int *")
    for number in range(2, LAST_COMPONENT):
        if features[0] >> number & 1 and not lib.seam_xsave_component(number, offset, size):
            found.append((number, offset[0], size[0]))  # noqa: PERF401 - three calls in one
    return found


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Registers eax, ebx, ecx, edx of the CPUID instruction; zeros for an unknown leaf."""
    answer = ffi.new("unsigned int[4]")
    lib.seam_cpuid(leaf, subleaf, answer)
    return answer[0], answer[1], answer[2], answer[3]


def xstate_enabled() -> tuple[int, int]:
    """(features that the kernel has enabled, bytes of their XSAVE area)."""
    features = ffi.new("uint64_t *")
    size: int = lib.seam_xsave_size(features)
    return features[0], size


def xstate_template() -> bytes:
    """An NT_X86_XSTATE area of this processor, everything in its initial state."""
    features = ffi.new("uint64_t *")
    area = bytearray(max(lib.seam_xsave_size(features), 576))
    struct.pack_into("<H", area, 0, 0x37F)
    struct.pack_into("<I", area, 24, 0x1F80)
    struct.pack_into("<Q", area, 464, features[0])
    return bytes(area)
