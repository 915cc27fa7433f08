"""Bytes as they are, and formats whose libraries want a path."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from modelkms.errors import ModelNotLoadable
from modelkms.loaders import HeldModel
from modelkms.opened import OpenedModel

_GGUF_MAGIC = b"GGUF"


class BytesLoader:
    """A single file of any kind: `bytes`."""

    name = "bytes"

    def takes(self, model: OpenedModel) -> bool:
        return model.single_file

    def load(self, model: OpenedModel, *, file: str | None = None) -> bytes:
        """
        Args:
            file: which one, where there are several.
        """
        return model.read(file)


class GgufLoader:
    """GGUF (llama.cpp, whisper.cpp, …): a path in memory, valid until the result is closed."""

    name = "gguf"

    def takes(self, model: OpenedModel) -> bool:
        return len(model.files()) == 1 and self._is_gguf(model, None)

    def load(self, model: OpenedModel, *, file: str | None = None) -> HeldModel:
        """
        Args:
            file: which one, where there are several (the first of a split model).

        Raises:
            ModelNotLoadable: it is no GGUF.
        """
        if not self._is_gguf(model, file):
            raise ModelNotLoadable("the file does not begin as GGUF does")
        # The memory file belongs to the model: it stays open with the result.
        return HeldModel(Path(model.path(file)), ExitStack())

    def _is_gguf(self, model: OpenedModel, file: str | None) -> bool:
        with model.open(file) as stream:
            return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
