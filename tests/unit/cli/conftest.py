"""A fake service, and the command line on it in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from modelkms.cli.__main__ import main

from tests.unit.cli.fake_client import FakeService


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def error(self) -> Any:
        """The error of --json mode: one line on stderr, nothing on stdout."""
        (line,) = self.err.splitlines()
        assert self.out == ""
        return json.loads(line)["error"]


Cli = Callable[..., Ended]


@pytest.fixture
def service() -> FakeService:
    made = FakeService()
    made.publish("file", {"model.onnx": b"weights"})
    made.publish("folder", {"config.json": b"{}", "weights/a.bin": b"1234"})
    return made


@pytest.fixture
def cli(service: FakeService, capfd: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments], connect=service.connect)
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
