"""Small ONNX models, written by hand: what the `onnx` package would be needed for otherwise."""

from __future__ import annotations

import struct


def adder(values: list[float], external: str | None = None) -> tuple[bytes, bytes]:
    """A model that adds `values` to its input `x` and gives `y`; and the file beside it.

    Args:
        external: location of that file, relative to the model; None: the values lie in the model.
    """
    return adder_of(struct.pack(f"<{len(values)}f", *values), external)


def adder_of(raw: bytes, external: str | None = None) -> tuple[bytes, bytes]:
    """As `adder`; `raw`: little-endian floats of 32 bits."""
    length = len(raw) // 4
    tensor = _number(1, length) + _number(2, 1) + _text(8, "w")
    if external is None:
        tensor += _bytes(9, raw)
    else:
        for key, value in (("location", external), ("offset", "0"), ("length", str(len(raw)))):
            tensor += _bytes(13, _text(1, key) + _text(2, value))
        tensor += _number(14, 1)
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(3, "add") + _text(4, "Add")
    graph = (
        _bytes(1, node)
        + _text(2, "adder")
        + _bytes(5, tensor)
        + _bytes(11, _value("x", length))
        + _bytes(12, _value("y", length))
    )
    opset = _bytes(8, _text(1, "") + _number(2, 17))
    return _number(1, 8) + _bytes(7, graph) + opset, raw if external is not None else b""


def _value(name: str, length: int) -> bytes:
    shape = _bytes(1, _number(1, length))
    tensor_type = _number(1, 1) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, tensor_type))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
