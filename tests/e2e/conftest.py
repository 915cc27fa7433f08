"""One real stack for the end-to-end tests: OpenBao, or HashiCorp Vault where marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kms_service.config import load
from kms_service.development.openbao import OpenBao
from kms_service.development.stack import DevelopmentStack
from tests.support.cli import Cli
from tests.support.hashicorp_vault import HashicorpVault
from tests.support.planted_secrets import PLAINTEXT, plant
from tests.support.service_secrets import plant_data_keys_of

_MARKER = b"a piece of plaintext that nobody writes down"
plant(PLAINTEXT, _MARKER)


@pytest.fixture(
    scope="session", params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)]
)
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DevelopmentStack]:
    """Shared by the tests of a worker; each uses models of its own."""
    start_vault = OpenBao.start if request.param == "openbao" else HashicorpVault.start
    folder = tmp_path_factory.mktemp("stack")
    with DevelopmentStack(folder, start_vault=start_vault) as running:
        yield running
        plant_data_keys_of(load(running.paths.config_file, {}))


@pytest.fixture
def cli(stack: DevelopmentStack, tmp_path: Path) -> Callable[[str], Cli]:
    """`cli("reader")` is the command under the reader's profile."""
    home = tmp_path / "home"
    home.mkdir()

    def of(identity: str) -> Cli:
        return Cli(stack.paths.profile(identity), home)

    return of


@pytest.fixture
def folder_model(tmp_path: Path) -> Path:
    """A small folder model, nested, with an empty file."""
    folder = tmp_path / "package"
    (folder / "weights").mkdir(parents=True)
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "weights" / "a.bin").write_bytes(bytes(range(256)) * 3000 + _MARKER)
    (folder / "weights" / "empty.bin").write_bytes(b"")
    return folder


@pytest.fixture
def file_model(tmp_path: Path) -> Path:
    """A file model of some segments."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"0123456789abcdef" * 50_000 + _MARKER + b"tail")
    return file
