"""Writing plaintext files below a folder: all of them or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


class Extraction:
    """What one extraction makes below `folder`: folders 0700, files 0600, nothing that was there
    before, nothing through a link. If the `with` block fails, all of it is removed again.

    Names come from an archive that was checked: they lead nowhere but below the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self._made: set[Path] = set()
        self._order: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._root.mkdir(mode=0o700)
        except FileExistsError:
            if self._root.is_symlink() or not self._root.is_dir():
                raise
        else:
            self._order.append(self._root)
        return self

    @contextmanager
    def create(self, name: str) -> Iterator[int]:
        """A new file, open for writing at any offset.

        Raises:
            FileExistsError: there is something of its name, or of one of its folders'.
        """
        path = self._root / name
        self._make_parents(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        self._order.append(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_parents(self, path: Path) -> None:
        missing = [
            parent
            for parent in path.relative_to(self._root).parents
            if parent.parts and parent not in self._made
        ]
        for parent in reversed(missing):
            # A folder that is there was not made by us: it could be a link to somewhere else.
            (self._root / parent).mkdir(mode=0o700)
            self._made.add(parent)
            self._order.append(self._root / parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        for path in reversed(self._order):
            try:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError:
                continue  # the error that is on its way says more


def write_at(descriptor: int, offset: int, data: memoryview) -> None:
    """Write all of `data` at `offset`; a short write is gone on with, so that its cause shows."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]
