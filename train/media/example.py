"""tf.train.Example records, written and read without TensorFlow.

The message is three levels of protobuf (tensorflow/core/example): Example.features (1) is a map of
names (1) to features (2), each a list of bytes (1), of floats (2) or of integers (3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Value = list[bytes] | np.ndarray
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5


def parse(record: bytes) -> dict[str, Value]:
    """A serialised Example -> {name: list of bytes, or an array of floats or integers}.

    Raises:
        ValueError: it is none.
    """
    found: dict[str, Value] = {}
    try:
        for _, features in _fields(record, 1):
            for _, entry in _fields(features, 1):
                held = dict(_fields(entry))
                found[bytes(held[1]).decode()] = _feature(held.get(2, b""))
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"no tf.train.Example ({error})") from None
    return found


def build(features: Mapping[str, bytes | str | Sequence[bytes] | np.ndarray]) -> bytes:
    """The inverse: bytes (texts, lists of them), or arrays of floats or integers."""
    entries = []
    for name, value in features.items():
        kind, body = _list(value)
        feature = _chunk(kind, body)
        entries.append(_chunk(1, _chunk(1, name.encode()) + _chunk(2, feature)))
    return _chunk(1, b"".join(entries))


def _list(value: bytes | str | Sequence[bytes] | np.ndarray) -> tuple[int, bytes]:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return 2, _chunk(1, value.astype("<f4").tobytes())
    if isinstance(value, np.ndarray):
        return 3, _chunk(1, b"".join(_varint(int(n) % 2**64) for n in value.ravel()))
    items = [value] if isinstance(value, (bytes, str)) else value
    items = [item.encode() if isinstance(item, str) else item for item in items]
    return 1, b"".join(_chunk(1, item) for item in items)


def _feature(body: bytes) -> Value:
    for kind, items in _fields(body):
        if kind == 1:
            return [bytes(item) for _, item in _fields(items, 1)]
        if kind == 2:  # packed, or one after the other
            raw = b"".join(bytes(item) for _, item in _fields(items, 1))
            return np.frombuffer(raw, "<f4")
        if kind == 3:
            return np.array(list(_integers(items)), np.int64)
    return []


def _integers(items: bytes) -> Iterator[int]:
    for _, item in _fields(items, 1):
        if isinstance(item, int):
            yield item - 2**64 if item >= 2**63 else item
            continue
        place = 0
        while place < len(item):
            number, place = _read_varint(item, place)
            yield number - 2**64 if number >= 2**63 else number


def _fields(message: bytes, wanted: int | None = None) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of a message's fields, or of those of one number."""
    view, place = memoryview(message), 0
    while place < len(view):
        tag, place = _read_varint(view, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _read_varint(view, place)
        elif kind in (_LONG, _SHORT):
            size = 8 if kind == _LONG else 4
            value, place = view[place : place + size], place + size
        elif kind == _BYTES:
            size, place = _read_varint(view, place)
            if place + size > len(view):
                raise ValueError("no tf.train.Example (it is cut short)")
            value, place = view[place : place + size], place + size
        else:
            raise ValueError(f"no tf.train.Example (a field of kind {kind})")
        if wanted in (None, number):
            yield number, value


def _read_varint(view: bytes | memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
        if shift > 63:
            raise ValueError("no tf.train.Example (a number without an end)")


def _varint(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _chunk(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(body)) + body
