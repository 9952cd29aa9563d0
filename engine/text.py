# SPDX-License-Identifier: Apache-2.0
"""Small texts for people: sizes, durations, and names that cannot play tricks on a terminal."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(size_bytes: int) -> str:
    """`4.7 MiB`."""
    value = float(size_bytes)
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """`2.1 ms`, `3.4 s`."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 task`, `3 tasks`, `1,204 pages`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""The text with everything that is not printable written as `\x1b`, `\udcff`, `\n`.

    Names in images come from strangers, and a terminal obeys escape sequences.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name(raw: bytes) -> str:
    """A path or a name from an image, as Python keeps file names."""
    return raw.decode("utf-8", "surrogateescape")


def parse_size(text: str) -> int:
    """`64M`, `1G`, `4096`: bytes.

    Raises:
        ValueError: not a size.
    """
    scale = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    number = int(text[:-1] if scale else text)
    if number < 0:
        raise ValueError("a size is not negative")
    return number << (scale or 0)
