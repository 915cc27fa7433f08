"""CRC-32 of a whole from those of its parts, so that the parts can be read in any order."""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
"""Of CRC-32 as ZIP has it, bits reversed: the highest is the coefficient of x^0."""
_ONE = 1 << 31


def crc32_joined(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two byte strings, one behind the other, from those of each.

    A CRC is a remainder modulo the polynomial. Appending n bytes multiplies what stands before by
    x^(8n); initial and final inversion cancel out (as in zlib's `crc32_combine`).
    """
    return _multiplied(_shift(second_bytes), first) ^ second


@lru_cache(maxsize=64)  # chunks have few different lengths
def _shift(length_bytes: int) -> int:
    """x^(8 · length) modulo the polynomial."""
    result, square, exponent = _ONE, _ONE >> 1, 8 * length_bytes
    while exponent:
        if exponent & 1:
            result = _multiplied(result, square)
        square = _multiplied(square, square)
        exponent >>= 1
    return result


def _multiplied(left: int, right: int) -> int:
    """The product of two polynomials over GF(2), modulo the polynomial."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
