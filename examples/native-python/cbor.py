"""The part of CBOR (RFC 8949) that a snapshot's values need: integers, floats, texts, bytes, lists,
maps, true, false and null.

What is written has definite lengths and the shortest integers, so that the same value always has the
same bytes; maps keep their order. Indefinite lengths are refused: no writer of snapshots makes them.
"""

import struct

DEEPEST = 128  # levels of nesting, as the snapshot format says
SIMPLE = {20: False, 21: True, 22: None}
FLOATS = {25: ">e", 26: ">f", 27: ">d"}
BIGNUM, NEGATIVE_BIGNUM = 2, 3  # tags


class NotCbor(ValueError):
    """The bytes are no value, or not one value alone."""


def _head(major, number):
    if number < 24:
        return bytes([major << 5 | number])
    for width, (code, form) in enumerate(((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q"))):
        if number < 1 << (8 << width):
            return bytes([major << 5 | code]) + struct.pack(form, number)
    raise ValueError(f"{number} does not fit 64 bits")


def encode(value):
    """The bytes of a value."""
    if value is None or value is True or value is False:
        return bytes([0xE0 | {False: 20, True: 21, None: 22}[value]])
    if isinstance(value, int):
        number = ~value if value < 0 else value
        if number < 1 << 64:
            return _head(1 if value < 0 else 0, number)
        tag = NEGATIVE_BIGNUM if value < 0 else BIGNUM
        return _head(6, tag) + encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return _head(3, len(text)) + text
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, (list, tuple)):
        return _head(4, len(value)) + b"".join(map(encode, value))
    if isinstance(value, dict):
        pairs = (encode(key) + encode(held) for key, held in value.items())
        return _head(5, len(value)) + b"".join(pairs)
    raise TypeError(f"{type(value).__name__} cannot be part of a snapshot")


def decode(data):
    """The value that fills the bytes exactly."""
    value, end = _decode(bytes(data), 0, DEEPEST)
    if end != len(data):
        raise NotCbor(f"{len(data) - end} bytes follow the value")
    return value


def _take(data, at, count):
    if count > len(data) - at:
        raise NotCbor("a value reaches over the end of its bytes")
    return data[at : at + count], at + count


def _decode(data, at, levels):
    if levels == 0:
        raise NotCbor(f"nested over {DEEPEST} levels deep")
    (first,), at = _take(data, at, 1)
    major, low = first >> 5, first & 31
    if low > 27:
        raise NotCbor("a value of indefinite length")
    if low >= 24:
        number, at = _take(data, at, 1 << (low - 24))
    else:
        number = bytes([low])
    argument = int.from_bytes(number, "big")
    match major:
        case 0:
            return argument, at
        case 1:
            return ~argument, at
        case 2:
            return _take(data, at, argument)
        case 3:
            text, at = _take(data, at, argument)
            try:
                return text.decode(), at
            except UnicodeDecodeError as error:
                raise NotCbor("a text that is not UTF-8") from error
        case 4:
            return _sequence(data, at, levels, argument)
        case 5:
            flat, at = _sequence(data, at, levels, 2 * argument)
            try:
                pairs = dict(zip(flat[::2], flat[1::2]))
            except TypeError as error:
                raise NotCbor("a key that is a list or a map") from error
            if len(pairs) != argument:
                raise NotCbor("a key that comes twice")
            return pairs, at
        case 6:
            held, at = _decode(data, at, levels - 1)
            if argument not in (BIGNUM, NEGATIVE_BIGNUM) or not isinstance(held, bytes):
                raise NotCbor(f"tag {argument} has no meaning in a snapshot")
            number = int.from_bytes(held, "big")
            return (number if argument == BIGNUM else ~number), at
    if low in FLOATS:
        return struct.unpack(FLOATS[low], number)[0], at
    if low not in SIMPLE:
        raise NotCbor(f"simple value {argument} has no meaning in a snapshot")
    return SIMPLE[low], at


def _sequence(data, at, levels, count):
    # Each element has a byte at least: a count beyond that is a lie, and costs nothing here.
    if count > len(data) - at:
        raise NotCbor("more elements than bytes")
    elements = []
    for _ in range(count):
        element, at = _decode(data, at, levels - 1)
        elements.append(element)
    return elements, at
