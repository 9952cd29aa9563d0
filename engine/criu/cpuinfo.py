# SPDX-License-Identifier: Apache-2.0
"""`criu cpuinfo dump|check` and --cpu-cap: what the processor can do, in cpuinfo.img.

Facts (criu 4.2.1, tried; arch/x86/include/asm/cpufeatures.h of Linux): `capability` has 19 words
in Linux's order, each a register of CPUID but those that Linux makes up (2, 3, 5, 7, 8, 12, 16
and 17), which we leave 0. A dump writes the file when --cpu-cap is given and not `none`; a restore
with --cpu-cap compares, and fails without the file. `cpu` compares everything, `ins` that nothing
of the image's instructions is missing here, `fpu` the same for parts of XSAVE.
"""

import io
from pathlib import Path

from torpor.engine import logs, native
from torpor.engine.criu import session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import BadImage, Refused
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Writer, read_entries
from torpor.engine.images.kinds import BY_STEM
from torpor.engine.images.proto import criu_pb2 as pb

NAME = "cpuinfo.img"
EAX, EBX, ECX, EDX = range(4)
EXTENDED = 0x80000000
WORDS: dict[int, tuple[int, int, int]] = {
    0: (1, 0, EDX),
    1: (EXTENDED + 1, 0, EDX),
    4: (1, 0, ECX),
    6: (EXTENDED + 1, 0, ECX),
    9: (7, 0, EBX),
    10: (0xD, 1, EAX),
    11: (7, 0, ECX),
    13: (EXTENDED + 8, 0, EBX),
    14: (6, 0, EAX),
    15: (EXTENDED + 0xA, 0, EDX),
    18: (7, 0, EDX),
}
"""Word of `capability` → leaf, subleaf and register of CPUID."""
WORD_COUNT = 19
VOLATILE = {4: 1 << 27, 11: 1 << 4}
"""Bits that tell what the kernel has enabled, not what there is: OSXSAVE, OSPKE."""
VENDORS = {"GenuineIntel": pb.cpuinfo_x86_entry.INTEL, "AuthenticAMD": pb.cpuinfo_x86_entry.AMD}
DEFAULT = ("fpu", "ins")

log = logs.logger(__name__)


def run_dump(line: CommandLine) -> int:
    """`criu cpuinfo dump`."""
    begun = session.begin(line)
    write(begun.images_dir)
    log.info("%s written", begun.images_dir / NAME)
    return 0


def run_check(line: CommandLine) -> int:
    """`criu cpuinfo check`."""
    begun = session.begin(line)
    check(begun.images_dir, line.last("cpu_cap"))
    log.info("the processor has what %s asks for", begun.images_dir / NAME)
    return 0


def write_if_wanted(directory: Path, capabilities: str) -> None:
    """What `dump --cpu-cap=...` writes."""
    if chosen(capabilities):
        write(directory)


def write(directory: Path) -> None:
    """Write cpuinfo.img of this processor."""
    path = directory / NAME
    with translated("write", str(path)), path.open("wb") as stream:
        Writer(stream, NAME, BY_STEM["cpuinfo"]).add(pb.cpuinfo_entry(x86_entry=[collect()]))


def collect() -> pb.cpuinfo_x86_entry:
    """This processor."""
    _, *name = native.cpuid(0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (name[0], name[2], name[1]))
    version = native.cpuid(1)[EAX]
    family, model = version >> 8 & 15, version >> 4 & 15
    if family == 15:
        family += version >> 20 & 0xFF
    if family >= 6:
        model += (version >> 16 & 15) << 4
    enabled, size = native.xstate_enabled()
    words = [0] * WORD_COUNT
    for number, (leaf, subleaf, register) in WORDS.items():
        words[number] = native.cpuid(leaf, subleaf)[register]
    title = b"".join(
        part.to_bytes(4, "little") for leaf in (2, 3, 4) for part in native.cpuid(EXTENDED + leaf)
    )
    return pb.cpuinfo_x86_entry(
        vendor_id=VENDORS.get(vendor.decode("ascii", "replace"), pb.cpuinfo_x86_entry.UNKNOWN),
        cpu_family=family,
        model=model,
        stepping=version & 15,
        capability_ver=2,
        capability=words,
        model_id=title.rstrip(b"\0").decode("ascii", "replace").strip(),
        xfeatures_mask=enabled,
        xsave_size=size,
        xsave_size_max=native.cpuid(0xD)[ECX],
    )


def check(directory: Path, capabilities: str) -> None:
    """Compare the image with this processor.

    Raises: BadImage, Refused.
    """
    wanted = chosen(capabilities)
    if not wanted:
        return
    path = directory / NAME
    if not path.exists():
        raise BadImage("is missing", subject=str(path), remedy="dump with --cpu-cap as well")
    with translated("read", str(path)):
        raw = path.read_bytes()
    then = [
        one
        for entry in read_entries(io.BytesIO(raw), NAME, BY_STEM["cpuinfo"])
        if isinstance(entry.message, pb.cpuinfo_entry)
        for one in entry.message.x86_entry
    ]
    if not then:
        raise BadImage("is of another architecture", subject=str(path))
    for cause in differences(then[0], collect(), wanted):
        raise Refused("the processor differs", subject=str(path), cause=cause,
                      remedy="restore on a like processor, or say --cpu-cap=none")  # fmt: skip


def chosen(capabilities: str) -> frozenset[str]:
    """What of `cpu`, `ins` and `fpu` a value of --cpu-cap asks for; without a value all."""
    found: set[str] = set(DEFAULT) if capabilities.startswith("^") else set()
    for word in (capabilities or "all").split(","):
        name = word.removeprefix("^")
        named = {"all": {"cpu", "ins", "fpu"}, "none": set[str]()}.get(name, {name})
        if name == "none":
            found.clear()
        found = found - named if word.startswith("^") else found | named
    return frozenset(found)


def differences(
    then: pb.cpuinfo_x86_entry, now: pb.cpuinfo_x86_entry, wanted: frozenset[str]
) -> list[str]:
    """What is missing here, in words."""
    found = []
    if wanted & {"cpu", "ins"} and then.vendor_id != now.vendor_id:
        found.append("another maker")
    pairs = [
        (n, a & ~VOLATILE.get(n, 0), b & ~VOLATILE.get(n, 0))
        for n, (a, b) in enumerate(zip(then.capability, now.capability, strict=False))
        if n in WORDS
    ]
    if "cpu" in wanted:
        found += [f"word {n}: {a:#x} then, {b:#x} now" for n, a, b in pairs if a != b]
    elif "ins" in wanted:
        found += [f"word {n} lacks {a & ~b:#x}" for n, a, b in pairs if a & ~b]
    if "fpu" in wanted and then.xfeatures_mask & ~now.xfeatures_mask:
        found.append(f"XSAVE lacks {then.xfeatures_mask & ~now.xfeatures_mask:#x}")
    return found
