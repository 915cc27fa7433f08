"""Encrypted machine-learning models: publish, open, run.

import modelkms

with modelkms.connect() as client:
    client.push("model.onnx", "camera/face-detector")
    with client.open("camera/face-detector") as model:
        weights = model.read()
    session = client.load("camera/face-detector")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from modelkms.errors import ModelKmsError

if TYPE_CHECKING:
    from modelkms.client import Client, connect, load
    from modelkms.opened import OpenedModel
    from modelkms.profile import Profile
    from modelkms.reference import Reference
    from modelkms.timings import Timings
    from modelkms.types import (
        AliasInfo,
        Identity,
        LeaseInfo,
        MasterKeyInfo,
        ModelInfo,
        PinInfo,
        Progress,
        ProjectInfo,
        Pushed,
        VersionInfo,
    )

__version__ = "0.1.0"

__all__ = [
    "AliasInfo",
    "Client",
    "Identity",
    "LeaseInfo",
    "MasterKeyInfo",
    "ModelInfo",
    "ModelKmsError",
    "OpenedModel",
    "PinInfo",
    "Profile",
    "Progress",
    "ProjectInfo",
    "Pushed",
    "Reference",
    "Timings",
    "VersionInfo",
    "__version__",
    "connect",
    "load",
]

# Imported when first asked for: `modelkms inspect` and `modelkms.artifact` need no gRPC.
_HOMES = {
    "Client": "client",
    "connect": "client",
    "load": "client",
    "OpenedModel": "opened",
    "Profile": "profile",
    "Reference": "reference",
    "Timings": "timings",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'types')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value
