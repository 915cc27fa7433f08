"""From an opened model to what a library makes of it (docs/guides/loaders.md).

A loader looks at the files of a model and says whether it takes it; the first that does, loads it.
Ours are asked first, then those that installed distributions bring as entry points of the group
`modelkms.loaders`, then the one that gives plain bytes.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from modelkms.errors import LibraryMissing, ModelClosed, ModelNotLoadable, UsageError
from modelkms.opened import OpenedModel

ENTRY_POINTS = "modelkms.loaders"


@runtime_checkable
class Loader(Protocol):
    """Loads one kind of model.

    Attributes:
        name: short and unique, for `loader=`.
    """

    name: str

    def takes(self, model: OpenedModel) -> bool:
        """Whether the files are of this kind. Cheap: names, and the first bytes of a file."""
        ...

    @property
    def load(self) -> Callable[..., Any]:
        """A method: `load(model, **options)` gives what the library makes of it. The model is
        closed afterwards, unless the result is a `HeldModel`: then with that.

        Raises:
            LibraryMissing: the library is not installed.
            ModelNotLoadable: the files are not what they seem.
        """
        ...


class HeldModel:
    """A result that lives on files in memory: they are gone once it is closed.

    Attributes:
        path: of the file or folder.
    """

    def __init__(self, path: Path, resources: ExitStack) -> None:
        self.path = path
        self._resources = resources
        self._closed = False

    def hold(self, resources: ExitStack) -> None:
        """Keep these open as long as this, and close them after it."""
        with ExitStack() as stack:
            stack.push(resources.pop_all())
            stack.push(self._resources.pop_all())
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._closed = True
        self._resources.close()

    def __fspath__(self) -> str:
        if self._closed:
            raise ModelClosed("the loaded model was closed")
        return os.fspath(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"


def load(model: OpenedModel, loader: str | None = None, **options: Any) -> Any:
    """What the loader of this kind of model makes of it.

    Args:
        loader: by name, instead of by what the model holds.
        options: for the loader.

    Raises:
        ModelNotLoadable: no loader takes it, or its files are not what they seem.
        LibraryMissing: the library that the loader needs is not installed.
        UsageError: there is no loader of this name, or it has no such option.
    """
    chosen = _named(loader) if loader is not None else _taking(model)
    return chosen.load(model, **options)


def available() -> list[str]:
    """Names of all loaders, in the order in which they are asked."""
    return [loader.name for loader in _loaders()]


def require(module: str, extra: str) -> Any:
    """The module, imported.

    Raises:
        LibraryMissing: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LibraryMissing(
            f"{module} cannot be imported: {error}", hint=f"pip install 'modelkms[{extra}]'"
        ) from error


def _named(name: str) -> Loader:
    for loader in _loaders():
        if loader.name == name:
            return loader
    raise UsageError(f"there is no loader {name!a}", hint=f"there are {', '.join(available())}")


def _taking(model: OpenedModel) -> Loader:
    for loader in _loaders():
        if loader.takes(model):
            return loader
    raise ModelNotLoadable(
        f"no loader knows what {model.version.reference} is",
        hint="read its files with .read() and .open(), or give it to a program with `modelkms run`",
    )


def _loaders() -> Sequence[Loader]:
    from modelkms.loaders.coreml import CoreMlLoader
    from modelkms.loaders.huggingface import HuggingFaceLoader, LoraLoader
    from modelkms.loaders.onnx import OnnxLoader
    from modelkms.loaders.plain import BytesLoader, GgufLoader
    from modelkms.loaders.pytorch import PyTorchLoader
    from modelkms.loaders.safetensors import SafetensorsLoader

    ours: list[Loader] = [
        CoreMlLoader(),
        LoraLoader(),
        HuggingFaceLoader(),
        OnnxLoader(),
        SafetensorsLoader(),
        PyTorchLoader(),
        GgufLoader(),
    ]
    taken = {loader.name for loader in ours}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        loader = entry_point.load()()
        if not isinstance(loader, Loader) or loader.name in taken:
            raise UsageError(
                f"the loader {entry_point.value} is no loader, or its name is taken",
                hint="uninstall the distribution that brings it, or mend it",
            )
        taken.add(loader.name)
        ours.append(loader)
    return [*ours, BytesLoader()]
