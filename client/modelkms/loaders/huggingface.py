"""Folders as Hugging Face's libraries have them, and LoRA adapters."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from modelkms.errors import ModelNotLoadable
from modelkms.loaders import HeldModel
from modelkms.loaders.safetensors import Framework, SafetensorsLoader
from modelkms.opened import OpenedModel

_CONFIG = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 16 << 20


class HuggingFaceLoader:
    """A folder with `config.json`: a path in memory-backed storage for `from_pretrained`, valid
    until the result is closed."""

    name = "huggingface"

    def takes(self, model: OpenedModel) -> bool:
        return not model.single_file and _CONFIG in model.files()

    def load(self, model: OpenedModel) -> HeldModel:
        """
        Raises:
            ModelNotLoadable: `config.json` is none. And as `OpenedModel.materialize`.
        """
        _json_object(model, _CONFIG)
        with ExitStack() as stack:
            folder = stack.enter_context(model.materialize())
            return HeldModel(folder, stack.pop_all())


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter: its configuration as `peft` writes it, and its tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, Any]


class LoraLoader:
    """A folder with `adapter_config.json` and `adapter_model.safetensors`: a `LoraAdapter`; or,
    with `path=True`, a path in memory-backed storage for `PeftModel.from_pretrained`."""

    name = "lora"

    def takes(self, model: OpenedModel) -> bool:
        return {_ADAPTER_CONFIG, _ADAPTER_WEIGHTS} <= set(model.files())

    def load(
        self, model: OpenedModel, *, framework: Framework = "numpy", path: bool = False
    ) -> LoraAdapter | HeldModel:
        """
        Raises:
            ModelNotLoadable: configuration or tensors are none.
        """
        config = _json_object(model, _ADAPTER_CONFIG)
        if path:
            with ExitStack() as stack:
                folder = stack.enter_context(model.materialize())
                return HeldModel(folder, stack.pop_all())
        tensors = SafetensorsLoader().load(model, framework=framework, file=_ADAPTER_WEIGHTS)
        return LoraAdapter(config, tensors)


def _json_object(model: OpenedModel, name: str) -> dict[str, Any]:
    with model.open(name) as stream:
        text = stream.read(_MAX_CONFIG_BYTES + 1)
    try:
        value = json.loads(text) if len(text) <= _MAX_CONFIG_BYTES else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelNotLoadable(f"{name} is no JSON object")
    return value
