# SPDX-License-Identifier: Apache-2.0
"""Registers of a thread: general ones, x87/SSE and every XSAVE component.

Facts:
- NT_PRSTATUS is struct user_regs_struct, 27 words; fs_base and gs_base are in it
  (arch/x86/include/asm/user_64.h).
- NT_X86_XSTATE is the standard (never compacted) XSAVE area; its length and the offsets of
  its components depend on the processor and are asked of it (CPUID leaf 0xd). XCR0 is stored
  at byte 464, in the software-reserved part (arch/x86/kernel/fpu/xstate.c).
- CRIU's messages name each component (user_x86_xsave_entry); a component without a field
  there (AMX tiles) is kept only in our own copy of the area.
"""

import struct
from dataclasses import dataclass
from typing import Any

from torpor.engine.capture import ThreadCapture
from torpor.engine.errors import BadImage

GP_FIELDS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si",
    "di", "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
GP = struct.Struct("<27Q")
LEGACY = 3
"""x87 and SSE, which every processor has."""
ST_WORDS, XMM_WORDS = 32, 64
XCR0_OFFSET = 464
XSTATE_BV_OFFSET = 512
AREA_HEADER_END = 576
# number of the component → field of user_x86_xsave_entry, element format
COMPONENTS = {
    2: ("ymmh_space", "I"),
    3: ("bndreg_state", "Q"),
    4: ("bndcsr_state", "Q"),
    5: ("opmask_reg", "Q"),
    6: ("zmm_upper", "Q"),
    7: ("hi16_zmm", "Q"),
    9: ("pkru", "I"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Where a component lies in the XSAVE area of this processor."""

    number: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """``general`` is struct user_regs_struct, ``xstate`` the NT_X86_XSTATE note."""

    general: bytes
    xstate: bytes


def collect(thread: ThreadCapture) -> Registers:
    """As captured: an interrupted call is set up to be issued again."""
    return Registers(general=thread.regs, xstate=thread.xstate)


def encode(state: Registers, thread_info: Any, components: tuple[Component, ...]) -> None:  # noqa: ANN401
    """Fill a thread_info_x86."""
    for name, value in zip(GP_FIELDS, GP.unpack(state.general), strict=True):
        setattr(thread_info.gpregs, name, value)
    thread_info.gpregs.mode = 1
    area, fp = state.xstate, thread_info.fpregs
    fp.cwd, fp.swd, fp.twd, fp.fop = struct.unpack_from("<4H", area, 0)
    fp.rip, fp.rdp, fp.mxcsr, fp.mxcsr_mask = struct.unpack_from("<QQII", area, 8)
    fp.st_space.extend(struct.unpack_from("<32I", area, 32))
    fp.xmm_space.extend(struct.unpack_from("<64I", area, 160))
    (present,) = struct.unpack_from("<Q", area, XSTATE_BV_OFFSET)
    fp.xsave.xstate_bv = present
    for part in components:
        if part.number not in COMPONENTS or part.offset + part.size_bytes > len(area):
            continue
        name, letter = COMPONENTS[part.number]
        count = part.size_bytes // struct.calcsize(letter)
        if part.number == 9:
            count = 1
        values = struct.unpack_from(f"<{count}{letter}", area, part.offset)
        getattr(fp.xsave, name).extend(values if present >> part.number & 1 else [0] * count)


def decode(
    thread_info: Any,  # noqa: ANN401
    raw_xstate: bytes | None,
    components: tuple[Component, ...],
    template: bytes,
    subject: str,
) -> Registers:
    """Read a thread_info_x86; ``template`` is an area of this processor in its initial state.

    Our own whole copy is preferred when this processor's area has the same length.

    Raises:
        BadImage: the registers need a component that this processor lacks.
    """
    if thread_info.gpregs.mode == 2:
        raise BadImage(
            "32-bit (compat) registers are not restored",
            subject=subject,
            remedy="move it to an engine that supports compat tasks",
        )
    general = GP.pack(*(getattr(thread_info.gpregs, name) for name in GP_FIELDS))
    known = sum(1 << part.number for part in components) | LEGACY
    if raw_xstate is not None and len(raw_xstate) == len(template):
        (present,) = struct.unpack_from("<Q", raw_xstate, XSTATE_BV_OFFSET)
        _require_known(present, known, subject)
        return Registers(general=general, xstate=raw_xstate)
    fp = thread_info.fpregs
    present = fp.xsave.xstate_bv if fp.HasField("xsave") else LEGACY
    _require_known(present, known, subject)
    _require_known(present, sum(1 << n for n in COMPONENTS) | LEGACY, subject)
    if len(fp.st_space) != ST_WORDS or len(fp.xmm_space) != XMM_WORDS:
        raise BadImage("the floating point registers are not whole", subject=subject)
    area = bytearray(template)
    struct.pack_into("<4H", area, 0, fp.cwd, fp.swd, fp.twd, fp.fop)
    struct.pack_into("<QQI", area, 8, fp.rip, fp.rdp, fp.mxcsr)
    struct.pack_into(f"<{ST_WORDS}I", area, 32, *fp.st_space)
    struct.pack_into(f"<{XMM_WORDS}I", area, 160, *fp.xmm_space)
    for part in components:
        if part.number in COMPONENTS and present >> part.number & 1:
            _put_component(area, part, fp.xsave, subject)
    struct.pack_into("<Q", area, XSTATE_BV_OFFSET, present | LEGACY)
    return Registers(general=general, xstate=bytes(area))


def _require_known(present: int, known: int, subject: str) -> None:
    unknown = present & ~known
    if unknown:
        number = unknown.bit_length() - 1
        name = COMPONENTS.get(number, (f"component {number}", ""))[0]
        raise BadImage(
            f"the image holds processor state {name} which this processor lacks",
            subject=subject,
            remedy="restore on a processor with that feature, as the old one had it",
        )


def _put_component(area: bytearray, part: Component, xsave: Any, subject: str) -> None:  # noqa: ANN401
    name, letter = COMPONENTS[part.number]
    values = getattr(xsave, name)
    raw = struct.pack(f"<{len(values)}{letter}", *values)
    if len(raw) > part.size_bytes:
        raise BadImage(f"{name} is longer than that of this processor", subject=subject)
    area[part.offset : part.offset + len(raw)] = raw
