"""Bytes that must not be seen."""

from __future__ import annotations

from typing import Never


class SecretBytes:
    """A key in memory: no `repr`, no `==`, no pickling; overwritten when it is no longer needed.

    `reveal()` is the only way in, so that a search for it finds every use. Wiping overwrites this
    copy; Python promises nothing about copies that libraries made (SECURITY.md).
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._value = bytearray(value)

    def reveal(self) -> bytes:
        """The bytes, as a fresh copy; all zeros after `wipe`."""
        return bytes(self._value)

    def wipe(self) -> None:
        """Overwrite this copy with zeros. Idempotent."""
        self._value[:] = bytes(len(self._value))

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return f"SecretBytes({len(self._value)} bytes)"

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are compared with hmac.compare_digest, not with ==")

    __hash__ = None  # type: ignore[assignment]  # unhashable on purpose, as `==` is refused

    def __reduce__(self) -> Never:
        raise TypeError("secrets are not pickled")
