"""PyTorch checkpoints: weights only, never code."""

from __future__ import annotations

from typing import Any

from modelkms.errors import MemoryStorageMissing, ModelKmsError, ModelNotLoadable
from modelkms.loaders import require
from modelkms.opened import OpenedModel

_SUFFIXES = (".pt", ".pth", ".ckpt", "pytorch_model.bin")
_ZIP_MAGIC = b"PK\x03\x04"


class PyTorchLoader:
    """`torch.save` files: what `torch.load(…, weights_only=True)` gives."""

    name = "pytorch"

    def takes(self, model: OpenedModel) -> bool:
        return len(_checkpoints(model)) == 1

    def load(
        self, model: OpenedModel, *, file: str | None = None, map_location: Any = "cpu"
    ) -> Any:
        """
        Args:
            file: which one, where there are several.
            map_location: as torch has it.

        Raises:
            ModelNotLoadable: there is not one such file; or it holds more than weights, which
                could run code, and is refused.
        """
        torch = require("torch", "torch")
        name = file or _only(_checkpoints(model))
        with model.open(name) as stream:
            zipped = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        try:
            if zipped and (path := _memory_path(model, name)) is not None:
                # Tensors are mapped from the memory file: no second copy of them is made.
                return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
            with model.open(name) as stream:
                return torch.load(stream, map_location=map_location, weights_only=True)
        except ModelKmsError:
            raise
        except Exception as error:  # pickle's, zip's and torch's own
            raise ModelNotLoadable(
                f"torch refuses {name}: {type(error).__name__}",
                hint="only weights are loaded; a file that holds objects could run code",
            ) from error


def _memory_path(model: OpenedModel, name: str) -> str | None:
    try:
        return model.path(name)
    except MemoryStorageMissing:  # off Linux
        return None


def _checkpoints(model: OpenedModel) -> list[str]:
    return [name for name in model.files() if name.lower().endswith(_SUFFIXES)]


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ModelNotLoadable(
            f"the model has {len(names)} checkpoints", hint="name one of them: file=…"
        )
    return names[0]
