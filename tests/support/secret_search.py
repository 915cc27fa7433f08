"""Finds any of many secrets in much data, in whatever form it was written."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf import text_encoding

_WINDOW = 8
_AT_ONCE = 1 << 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def forms(secret: bytes) -> Iterator[bytes]:
    """How it may be written: as it is, in hex, in base64 of both alphabets wherever it begins in
    what is encoded, as Python and as protobuf show bytes, as numbers."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Characters that also hold bits of what stands around it are left out.
            first = -(-before * 8 // 6)
            last = (before + len(secret)) * 8 // 6
            yield encode(bytes(before) + secret)[first:last]
    yield repr(secret)[2:-1].encode()
    yield text_encoding.CEscape(secret, as_utf8=False).encode()
    yield ", ".join(map(str, secret)).encode()
    yield " ".join(map(str, secret)).encode()


class SecretSearch:
    """Args:
    secrets: each with the name of its kind.
    """

    def __init__(self, secrets: Mapping[bytes, str]) -> None:
        # A secret is looked for by its last eight bytes: the first ones of tokens and of encoded
        # keys are often the same.
        self._by_window: dict[bytes, list[tuple[bytes, str]]] = {}
        self._longest = 1
        for secret, kind in secrets.items():
            for form in set(forms(secret)):
                self._by_window.setdefault(form[-_WINDOW:], []).append((form, kind))
                self._longest = max(self._longest, len(form))
        size_bits = max(16, (64 * len(self._by_window)).bit_length())
        self._shift = np.uint64(64 - size_bits)
        self._table: npt.NDArray[np.bool_] = np.zeros(1 << size_bits, np.bool_)
        if self._by_window:
            windows = np.frombuffer(b"".join(self._by_window), "<u8")
            self._table[self._slots(windows)] = True

    def kinds_in_file(self, file: Path) -> set[str]:
        """Kinds of the secrets that `file` holds."""
        found: set[str] = set()
        before = b""
        with file.open("rb") as source:
            while piece := source.read(_AT_ONCE):
                found |= self.kinds_in(before + piece)
                before = piece[-self._longest :]
        return found

    def kinds_in(self, data: bytes) -> set[str]:
        """Kinds of the secrets that `data` holds."""
        found: set[str] = set()
        for offset in range(_WINDOW):
            count = (len(data) - offset) // _WINDOW
            if count < 1:
                break
            windows = np.frombuffer(data, "<u8", count, offset)
            for index in np.flatnonzero(self._table[self._slots(windows)]):
                end = offset + (int(index) + 1) * _WINDOW
                for form, kind in self._by_window.get(data[end - _WINDOW : end], ()):
                    if data.endswith(form, 0, end):
                        found.add(kind)
        return found

    def _slots(self, windows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return (windows * _MULTIPLIER) >> self._shift
