"""pytest plugin: no secret that the suite knows of is in anything that the suite writes (F16).

Known are, without anybody's doing, every data key that becomes `SecretBytes` in this process, the
SDK's or the service's, and the private keys, tokens and credentials that lie in files below
pytest's temporary folder; and what `planted_secrets.plant` was given.

Searched are all files below that folder, and what `planted_secrets.written` was given: by this
plugin what commands told, the texts of our own errors, and the reports of tests with all that they
printed and logged. A data key may be in no file at all; the other kinds, which tests have to write
down somewhere, not in logs, records and databases.

With xdist each worker searches what it wrote for what it knows. The run fails if one finds
something; it is told where and of which kind, never what.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modelkms.errors
import modelkms.secret
import pytest

import kms_service.domain.errors
import kms_service.domain.secret
from tests.support import planted_secrets
from tests.support.planted_secrets import (
    CREDENTIAL,
    DATA_KEY,
    PLAINTEXT,
    TOKEN,
    plant,
    written,
)

_LARGEST_BYTES = 8 * 1024 * 1024
"""Of files that are no outputs: a larger one is the model of a test, or its ciphertext."""
_LARGEST_CREDENTIAL_BYTES = 64 * 1024
_OUTPUT = re.compile(
    r"\.(log|jsonl|prom|out|err|db|db-wal|db-shm|sqlite|xml)$|/(audit|checkpoints|spool|state)/"
)
_NOT_OURS = re.compile(r"/(site-packages|raft)/")
"""Installed packages; Vault's storage, which it encrypts."""
_CREDENTIAL = re.compile(r"(secret[-_]id|root-token|seal-key|recovery-key|password)(\.txt)?$")
_TOKEN = re.compile(rb"[\w-]{10,}\.[\w-]{10,}\.[\w-]{40,}\s*")
_TELLS_SECRETS = re.compile(r"/helper$|/interop open-answer\b")
"""What these print is what they are for: a profile's `token_exec` in the tests, and the Go client
that opens a key answer for a test to compare."""
_DATA_KEY_BYTES = 32
_LEAKS = "modelkms_leaks"
_leaks: list[str] = []


def pytest_configure() -> None:
    for kind in (modelkms.secret.SecretBytes, kms_service.domain.secret.SecretBytes):
        _also(kind, "__init__", lambda _, value, **__: _plant_bytes(bytes(value)))
    for root in (modelkms.errors.ModelKmsError, kms_service.domain.errors.ServiceError):
        _also(root, "__init__", _keep_error)
    _also(subprocess.Popen, "communicate", _keep_told)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    assert isinstance(report, pytest.TestReport)
    told = [report.longreprtext, *(text for _, text in report.sections)]
    written(f"report of {item.nodeid} ({report.when})", "\n".join(told))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last fixture: servers have stopped, their logs are whole."""
    config = session.config
    if not config.pluginmanager.has_plugin("dsession"):  # else its workers have searched
        _leaks.extend(_search(_temporary_folder(config)))
    worker: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if worker is not None:
        worker[_LEAKS] = list(_leaks)
    elif _leaks:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _leaks.extend(getattr(node, "workeroutput", {}).get(_LEAKS, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _leaks:
        terminalreporter.section("secrets in the open", red=True, bold=True)
        for leak in sorted(set(_leaks)):
            terminalreporter.line(leak)


# --- what is kept while tests run -----------------------------------------------------------------


def _also(kind: type[Any], method: str, keep: Callable[..., object]) -> None:
    """Call `keep` too, with the arguments of `method`, and its result as `result`."""
    original = getattr(kind, method)
    if hasattr(original, "__wrapped__"):  # configured twice in one process
        return

    @functools.wraps(original)
    def wrapper(self: object, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        keep(self, *args, **kwargs, result=result)
        return result

    setattr(kind, method, wrapper)


def _plant_bytes(value: bytes) -> None:
    """What the code itself keeps as a secret."""
    if len(value) == _DATA_KEY_BYTES:
        plant(DATA_KEY, value)
    elif b"PRIVATE KEY" in value:
        planted_secrets.plant_private_keys(value)
    else:
        plant(TOKEN, value)


def _keep_error(error: Any, *_: object, **__: object) -> None:
    hint = getattr(error, "hint", "")
    written(f"text of {type(error).__name__}", f"{error} {hint} {error.metadata}")


def _keep_told(process: Any, *_: object, result: tuple[Any, Any], **__: object) -> None:
    command = process.args if isinstance(process.args, str) else " ".join(map(str, process.args))
    for stream, told in zip(("stdout", "stderr"), result, strict=True):
        if stream != "stdout" or not _TELLS_SECRETS.search(command):
            written(f"{stream} of {command[:200]}", told)


# --- the search -----------------------------------------------------------------------------------


def _search(folder: Path | None) -> Iterator[str]:
    from tests.support.secret_search import SecretSearch

    files = list(_files(folder)) if folder is not None else []
    for file in files:
        _plant_from(file)
    search = SecretSearch(planted_secrets.planted)
    for where, content in planted_secrets.outputs:
        for kind in search.kinds_in(content):
            if kind != PLAINTEXT or not where.startswith("stdout"):  # `modelkms cat`
                yield f"{where}: {kind}"
    for file in files:
        is_output = _is_output(file)
        for kind in search.kinds_in_file(file):
            if is_output or kind == DATA_KEY:
                yield f"{file}: {kind}"


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if _NOT_OURS.search(str(file)) or file.is_symlink() or not file.is_file():
            continue
        if file.stat().st_size <= _LARGEST_BYTES or _is_output(file):
            yield file


def _is_output(file: Path) -> bool:
    return _OUTPUT.search(str(file)) is not None


def _plant_from(file: Path) -> None:
    if file.stat().st_size > _LARGEST_CREDENTIAL_BYTES or _is_output(file):
        return
    content = file.read_bytes()
    planted_secrets.plant_private_keys(content)
    if _CREDENTIAL.search(file.name):
        plant(CREDENTIAL, content.strip())
    elif _TOKEN.fullmatch(content):
        planted_secrets.plant_token(content.decode().strip())


def _temporary_folder(config: pytest.Config) -> Path | None:
    """None: no test has asked for one."""
    folder: Path | None = getattr(getattr(config, "_tmp_path_factory", None), "_basetemp", None)
    return folder
