"""fsspec: `modelkms://project/model[@version|@alias]/member`, read only.

Registered as an entry point of fsspec, so `fsspec.open("modelkms://…")` and whatever is built on it
(pandas, Hugging Face, Zarr) finds it. A small read decrypts one segment; a sequential one is read
ahead of. What is listed or read is authenticated; nothing is written anywhere.
"""

from __future__ import annotations

import threading
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.spec import AbstractFileSystem

import modelkms
from modelkms.errors import MemberNotFound, NotFoundError
from modelkms.opened import OpenedModel

PROTOCOL = "modelkms"


class ModelKmsFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files of models.

    Each model is opened once and kept open until `close`; its lease is renewed meanwhile, and ends
    for the filesystem too. Safe to use from several threads.

    Args:
        profile: as `modelkms.connect` has it.
        client: used instead of a connection of our own; stays open.
    """

    protocol = PROTOCOL
    cachable = False
    """No instance is shared by options: who made one closes it."""
    async_impl = False

    def __init__(
        self,
        profile: str | Path | None = None,
        client: modelkms.Client | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._client = client or modelkms.connect(profile)
        self._own = client is None
        self._models: dict[str, OpenedModel] = {}
        self._lock = threading.Lock()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is directly in a folder of a model, or the file itself.

        Raises:
            FileNotFoundError: no such model, file or folder.
        """
        reference, member = self._split(path)
        sizes = self._sizes(reference)
        if member in sizes:
            found = {member: (sizes[member], "file")}
        else:
            found = _children(sizes, member)
            if not found and member:
                raise FileNotFoundError(path)
        entries = [
            {"name": f"{reference}/{name}", "size": size, "type": kind}
            for name, (size, kind) in sorted(found.items())
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: no such model, file or folder.
        """
        reference, member = self._split(path)
        sizes = self._sizes(reference)
        name = f"{reference}/{member}" if member else reference
        if member in sizes:
            return {"name": name, "size": sizes[member], "type": "file"}
        if member and not _children(sizes, member):
            raise FileNotFoundError(path)
        return {"name": name, "size": 0, "type": "directory"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise ValueError("models are read only")
        reference, member = self._split(path)
        try:
            return self._model(reference).open(member or None)
        except MemberNotFound as error:
            raise FileNotFoundError(path) from error

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The file, or a part of it; negative positions count from its end."""
        reference, member = self._split(path)
        try:
            model = self._model(reference)
            if start is None and end is None:
                return model.read(member or None)
            with model.open(member or None) as file:
                first, last, _step = slice(start, end).indices(file.seek(0, 2))
                file.seek(first)
                return file.read(max(0, last - first))
        except MemberNotFound as error:
            raise FileNotFoundError(path) from error

    def close(self) -> None:
        """Close what was opened, keys and all. Idempotent."""
        with self._lock:
            while self._models:
                self._models.popitem()[1].close()
            if self._own:
                self._client.close()

    # --- helpers ---------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = str(path)
        return text.removeprefix(f"{PROTOCOL}://").strip("/")

    def _split(self, path: str) -> tuple[str, str]:
        """Reference and member; `project/model` always has two parts.

        Raises:
            FileNotFoundError: there is no model in it.
        """
        parts = self._strip_protocol(path).split("/", 2)
        if len(parts) < 2:
            raise FileNotFoundError(f"{path}: write {PROTOCOL}://project/model[@version]/member")
        return "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""

    def _model(self, reference: str) -> OpenedModel:
        with self._lock:
            model = self._models.get(reference)
            if model is None:
                try:
                    model = self._client.open(reference)
                except NotFoundError as error:
                    raise FileNotFoundError(reference) from error
                self._models[reference] = model
            return model

    def _sizes(self, reference: str) -> dict[str, int]:
        return self._model(reference).sizes()


def _children(sizes: dict[str, int], folder: str) -> dict[str, tuple[int, str]]:
    """Size and type of what is directly in a folder, by path."""
    root = PurePosixPath(folder)
    found: dict[str, tuple[int, str]] = {}
    for name, size in sizes.items():
        path = PurePosixPath(name)
        if path.is_relative_to(root) and path != root:
            first = path.relative_to(root).parts[0]
            child = (root / first).as_posix()
            found[child] = (size, "file") if child == name else (0, "directory")
    return found
