"""Core ML packages: a path in memory-backed storage, since Core ML wants one."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from modelkms.errors import ModelNotLoadable
from modelkms.loaders import HeldModel
from modelkms.opened import OpenedModel

_MANIFEST = "Manifest.json"
_DATA = "Data/"
_MAX_MANIFEST_BYTES = 16 << 20


class CoreMlLoader:
    """An `.mlpackage`: checked to be one, then a path for `coremltools.models.MLModel`, valid
    until the result is closed. Predicting needs macOS, which has no memory-backed folder: there
    the profile must allow one on a disk (`insecure_plaintext_dir`)."""

    name = "coreml"

    def takes(self, model: OpenedModel) -> bool:
        files = model.files()
        return _MANIFEST in files and any(name.startswith(_DATA) for name in files)

    def load(self, model: OpenedModel) -> HeldModel:
        """
        Raises:
            ModelNotLoadable: the manifest names something that is not there, or no model.
            MemoryStorageMissing, LocalDiskFull: as `OpenedModel.materialize`.
        """
        check_package(model)
        with ExitStack() as stack:
            folder = stack.enter_context(model.materialize("model.mlpackage"))
            return HeldModel(folder, stack.pop_all())


def check_package(model: OpenedModel) -> None:
    """
    Raises:
        ModelNotLoadable: it is no package: its manifest must list its items, each of them there,
            and name one as the root model.
    """
    with model.open(_MANIFEST) as stream:
        text = stream.read(_MAX_MANIFEST_BYTES + 1)
    try:
        manifest: dict[str, Any] = json.loads(text)
        root = manifest["rootModelIdentifier"]
        items = {key: str(item["path"]) for key, item in manifest["itemInfoEntries"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotLoadable(f"{_MANIFEST} is no manifest of a Core ML package") from error
    if root not in items:
        raise ModelNotLoadable(f"{_MANIFEST} names a root model that is none of its items")
    files = model.files()
    for path in items.values():
        name = _DATA + path
        if name not in files and not any(file.startswith(f"{name}/") for file in files):
            raise ModelNotLoadable(f"{_MANIFEST} names an item that is not there: {path!a}")
    if _DATA + items[root] not in files:
        raise ModelNotLoadable(f"{_MANIFEST} names a root model that is a folder")
