# SPDX-License-Identifier: Apache-2.0
"""Mutations of bytes, of protobuf messages and of JSON, all from one seeded generator."""

import json
from random import Random

from google.protobuf.descriptor import FieldDescriptor as Field

NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 64, 127, 255, 1023, 4095, 4096, 65535, 1 << 20, (1 << 22) - 1, 1 << 22,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 47, (1 << 47) - 4096, (1 << 63) - 1,
    1 << 63, (1 << 64) - 4096, (1 << 64) - 1, -1, -4096, -(1 << 31), -(1 << 63),
)  # fmt: skip
TEXTS = (
    b"", b"/", b".", b"..", b"../../../etc/passwd", b"/etc/shadow", b"/proc/self/mem", b"a\0b",
    b"\0", b"\xff\xfe/\x80", b"/" * 300, b"x" * 5000, b"/dev/zero", b"//deleted (deleted)", b"%s%n",
    b"/proc/1/root/etc", b"pipe:[1]", "\N{SNOWMAN}\n\N{ESCAPE}[2J".encode(),
)  # fmt: skip
MANY = 3000
"""Copies of one element where a list is made long."""
INTEGERS = {
    Field.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    Field.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    Field.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    Field.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def damaged(content: bytes, chance: Random, other: bytes = b"") -> bytes:
    """Bytes flipped, cut, doubled, overwritten by odd numbers, or spliced with another's."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(data):
                data[at] = chance.randrange(256)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                number = chance.choice(NUMBERS) & (1 << 64) - 1
                data[at : at + 8] = number.to_bytes(8, "little")[: max(0, len(data) - at)]
            case 5 if other:
                begin = chance.randrange(len(other))
                data[at : at + length] = other[begin : begin + length]
            case 6:
                del data[at:]
    return bytes(data)


def alter(message, chance: Random, known: list[int]) -> None:
    """Change some field of a message, at any depth; ``known`` are numbers that others use."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = message
        while True:
            fields = [one for one in at.DESCRIPTOR.fields if not _is_map(one)]
            if not fields:
                return
            field = chance.choice(fields)
            below = _below(at, field, chance)
            if below is None or chance.random() < 0.15:
                break
            at = below
        if field.is_repeated:
            _alter_list(at, field, chance, known)
        else:
            _alter_one(at, field, chance, known)


def _is_map(field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _below(message, field, chance):
    """A message in this field, to go down into."""
    if field.cpp_type != Field.CPPTYPE_MESSAGE:
        return None
    if field.is_repeated:
        items = getattr(message, field.name)
        return chance.choice(items) if items else None
    return getattr(message, field.name) if message.HasField(field.name) else None


def _alter_list(message, field, chance, known):
    items = getattr(message, field.name)
    at = chance.randrange(len(items)) if items else 0
    match chance.randrange(5):
        case 0:
            message.ClearField(field.name)
        case 1 if items:
            del items[at]
        case 2 if items:
            items.append(items[at])
        case 3 if items and chance.random() < 0.1:
            items.extend([items[at]] * MANY)
        case _ if field.cpp_type == Field.CPPTYPE_MESSAGE:
            items.add()
        case _ if items:
            items[at] = value_of(field, chance, known)
        case _:
            items.append(value_of(field, chance, known))


def _alter_one(message, field, chance, known):
    if chance.random() < 0.15:
        message.ClearField(field.name)
    elif field.cpp_type == Field.CPPTYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value_of(field, chance, known))


def value_of(field, chance: Random, known: list[int]):
    """An odd value that the field can hold."""
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        number = chance.choice(known) if known and chance.random() < 0.4 else chance.choice(NUMBERS)
        return number if low <= number <= high else number % (high + 1)
    if field.cpp_type == Field.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return chance.choice([value.number for value in field.enum_type.values])
    if field.type == Field.TYPE_BYTES:
        return chance.choice(TEXTS)
    return chance.choice(TEXTS).decode("utf-8", "replace")


def numbers_in(message) -> list[int]:
    """All integers of a message but zeros."""
    found = []
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.cpp_type == Field.CPPTYPE_MESSAGE:
            found += [number for one in values for number in numbers_in(one)]
        elif field.cpp_type in INTEGERS:
            found += values[:8]
    return found


JSON_VALUES = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, 1 << 64, 10**400, 1.5, 1e300, float("inf"), "", "x",
    "..", "/etc/passwd", "../x", "a\0b", "\ud800", "x" * 70000, [], {}, [[[[]]]], {"": None}, [0],
    {"x": {"y": []}}, ["", 1, None], "AAAA", "====",
)  # fmt: skip


def alter_json(document, chance: Random):
    """Change a value, a key or a list of a JSON document; returns the new document."""
    document = json.loads(json.dumps(document))
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            return chance.choice(JSON_VALUES)
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("", "x", "..", "/", "0", "\ud800"))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case 3:
                holder[key] = chance.choice(places)[0]
            case _:
                holder[key] = chance.choice(JSON_VALUES)
        document = json.loads(json.dumps(document, default=str)) if _finite(document) else {}
    return document


def _finite(document) -> bool:
    """A value may have been put into itself."""
    try:
        json.dumps(document)
    except (ValueError, RecursionError):
        return False
    return True


def _places(value):
    if isinstance(value, list):
        keys = range(len(value))
    else:
        keys = list(value) if isinstance(value, dict) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
