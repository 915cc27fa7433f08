"""The fake client has the real one's methods, parameter by parameter."""

from __future__ import annotations

import inspect

import pytest
from modelkms.client import Client
from modelkms.opened import OpenedModel

from tests.unit.cli.fake_client import FakeClient, FakeOpenedModel


def _methods(kind: type) -> list[str]:
    return [
        name
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", _methods(FakeClient))
def test_client(name: str) -> None:
    assert _parameters(FakeClient, name) == _parameters(Client, name)


@pytest.mark.parametrize("name", _methods(FakeOpenedModel))
def test_opened_model(name: str) -> None:
    assert _parameters(FakeOpenedModel, name) == _parameters(OpenedModel, name)


def _parameters(kind: type, name: str) -> list[tuple[str, object, object]]:
    signature = inspect.signature(getattr(kind, name))
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in signature.parameters.values()
    ]
