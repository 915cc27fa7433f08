"""The one encoder of everything that is bound, hashed or signed."""

from __future__ import annotations


def length_prefixed(*parts: bytes) -> bytes:
    """Encode `parts` so that no two different sequences give the same bytes.

    Each part is preceded by its length as four big-endian bytes. Injective, since the
    parts can be read back one after the other.

    Raises:
        OverflowError: a part is 4 GiB or longer.
    """
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])
