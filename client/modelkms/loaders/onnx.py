"""ONNX models into onnxruntime, from memory; weights beside the model too (external data)."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import Any

from modelkms.errors import LocalDiskFull, MemoryStorageMissing, ModelNotLoadable
from modelkms.loaders import require
from modelkms.opened import OpenedModel

_log = logging.getLogger("modelkms")

_SUFFIX = ".onnx"


class OnnxLoader:
    """One `.onnx` file, alone or with the files that its tensors lie in:
    `onnxruntime.InferenceSession`."""

    name = "onnx"

    def takes(self, model: OpenedModel) -> bool:
        return len(_models(model)) == 1

    def load(
        self,
        model: OpenedModel,
        *,
        file: str | None = None,
        providers: list[Any] | None = None,
        session_options: Any = None,
    ) -> Any:
        """
        Args:
            file: which `.onnx` file, where there are several.
            providers: of onnxruntime; None: all that it was built with, in its order.
            session_options: an `onnxruntime.SessionOptions`; external data is added to it.

        Raises:
            ModelNotLoadable: there is not one `.onnx` file, or onnxruntime refuses it.
        """
        runtime = require("onnxruntime", "onnx")
        name = file or _only(_models(model))
        content = model.read(name)
        options = session_options or runtime.SessionOptions()
        external = _external(model, name, content)

        def session(source: bytes | str) -> Any:
            try:
                return runtime.InferenceSession(
                    source,
                    sess_options=options,
                    providers=providers or runtime.get_available_providers(),
                )
            except Exception as error:  # its errors have no common class
                raise ModelNotLoadable(f"onnxruntime refuses {name}: {error}") from error

        if external:
            try:
                # From a path it maps the weights; mappings outlive the folder they are of.
                with model.materialize(
                    files=[name, *external.values()], only_in_memory=True
                ) as folder:
                    return session(str(folder / name))
            except (MemoryStorageMissing, LocalDiskFull) as error:
                _log.info("weights are given to onnxruntime from memory: %s", error.message)
        # It copies what it needs while the session is made; the views live until then.
        views = {location: model.memory(member) for location, member in external.items()}
        if views:
            options.add_external_initializers_from_files_in_memory(
                list(views), list(views.values()), [len(view) for view in views.values()]
            )
        return session(content)


def _models(model: OpenedModel) -> list[str]:
    return [name for name in model.files() if name.lower().endswith(_SUFFIX)]


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ModelNotLoadable(
            f"the model has {len(names)} .onnx files", hint="name one of them: file=…"
        )
    return names[0]


def _external(model: OpenedModel, name: str, content: bytes) -> dict[str, str]:
    """Files that the model's tensors lie in, by the location that the model gives: relative to its
    folder, and so written in the model as it is. A file whose name occurs without being one costs
    memory for a moment, nothing else.
    """
    folder = PurePosixPath(name).parent
    found = {}
    for member in model.files():
        path = PurePosixPath(member)
        if member != name and path.is_relative_to(folder):
            location = path.relative_to(folder).as_posix()
            if location.encode() in content:
                found[location] = member
    return found
