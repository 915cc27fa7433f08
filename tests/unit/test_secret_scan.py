"""The check at the end of a run finds what it is for: a whole run of pytest, with a leak in it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.secret_search import SecretSearch, forms

REPOSITORY = Path(__file__).parents[2]

LEAKS = """
import logging, os, subprocess, sys

import modelkms.errors
from modelkms.secret import SecretBytes

from kms_service.domain.errors import StateCorrupt
from tests.support.certificates import TestAuthority
from tests.support.planted_secrets import PLAINTEXT, TOKEN, plant, written

KEY = SecretBytes(bytes.fromhex(os.environ["PLANTED"]))
"""

OUTLETS = {
    "in_a_file": "(tmp_path / 'anything.bin').write_bytes(b'before' + KEY.reveal())",
    "in_a_log": "(tmp_path / 'service.log').write_text(f'key={KEY.reveal().hex()}')",
    "printed": "print(KEY.reveal().hex())",
    "logged": "logging.getLogger('x').warning('key %s', KEY.reveal().hex())",
    "told_by_a_command": (
        "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"PLANTED\"])'],"
        " capture_output=True, check=True)"
    ),
    "in_an_error_of_the_service": "StateCorrupt(f'cannot unwrap {KEY.reveal()!r}')",
    "in_an_error_of_the_sdk": (
        "modelkms.errors.ModelKmsError('no', metadata={'key': KEY.reveal().hex()})"
    ),
    "in_a_scrape": "written('metrics', 'x{key=\"' + KEY.reveal().hex() + '\"} 1')",
    "a_private_key": (
        "(tmp_path / 'audit').mkdir();"
        "(tmp_path / 'audit' / '1.jsonl').write_bytes(TestAuthority().client('a').key)"
    ),
    "a_token": (
        "plant(TOKEN, 'signature-of-a-token-0123');"
        "(tmp_path / 'service.log').write_text('Bearer e30.e30.signature-of-a-token-0123')"
    ),
    "a_credential": (
        "(tmp_path / 'secret-id').write_text('0f3c9a7e-5b21-4d68-9e02-1c7d8ab4f6e5\\n');"
        "(tmp_path / 'x.log').write_text('login 0f3c9a7e-5b21-4d68-9e02-1c7d8ab4f6e5 failed')"
    ),
    "plaintext": (
        "plant(PLAINTEXT, b'weights of a secret model');"
        "(tmp_path / 'state.db').write_bytes(b'weights of a secret model')"
    ),
}
KINDS = {
    "a_private_key": "private key",
    "a_token": "token",
    "a_credential": "credential",
    "plaintext": "plaintext of a model",
}
HARMLESS = """
def test_what_tests_do(tmp_path):
    issued = TestAuthority().client("a").write(tmp_path / "tls")
    plant(PLAINTEXT, b"weights of a secret model")
    (tmp_path / "model.bin").write_bytes(b"weights of a secret model")
    for regular in (bytes(32), b"k" * 32, bytes(range(32)), bytes(range(200, 40, -5))):
        SecretBytes(regular)
        print(repr(KEY), regular.hex())
    (tmp_path / "service.log").write_text(f"key={KEY!r} {issued.instance} " + "6b" * 32)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_f16_a_run_fails_that_writes_a_secret_anywhere(tmp_path: Path, workers: str) -> None:
    tests = "".join(f"\ndef test_{name}(tmp_path):\n    {code}\n" for name, code in OUTLETS.items())
    planted = os.urandom(32).hex()
    done = _run(tmp_path, tests, planted, "-n", workers)
    assert f"{len(OUTLETS)} passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    told = done.stdout.partition("secrets in the open")[2]
    for name in OUTLETS:
        kind = KINDS.get(name, "data key")
        assert any(
            line.endswith(f": {kind}") for line in told.splitlines() if _is_about(name, line)
        ), (name, told)
    for secret in (planted, "signature-of-a-token", "0f3c9a7e-5b21", "weights of a secret"):
        assert secret not in told + done.stderr


def test_a_run_that_writes_none_passes(tmp_path: Path) -> None:
    done = _run(tmp_path, HARMLESS, os.urandom(32).hex())
    assert done.returncode == 0, done.stdout
    assert "secrets in the open" not in done.stdout


def _is_about(name: str, line: str) -> bool:
    """Whether a line of the report names the outlet: its test, else what was kept by itself."""
    others = {
        "told_by_a_command": "stdout of",
        "in_an_error_of_the_service": "text of StateCorrupt",
        "in_an_error_of_the_sdk": "text of ModelKmsError",
        "in_a_scrape": "metrics:",
    }
    return others.get(name, f"test_{name}") in line


def _run(
    folder: Path, tests: str, planted: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """pytest on a suite of its own, whose secrets are planted in that process: to this one they
    are not known."""
    suite = folder / "suite"
    suite.mkdir()
    (suite / "test_it.py").write_text(LEAKS + tests)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.support.secret_scan", "-q"),
            *("-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(suite)),
            *("-p", "no:cacheprovider", "--basetemp", str(folder / "temporary")),
            *(*arguments, str(suite)),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PLANTED": planted},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=120)
    # This run's own check would find there what was planted.
    shutil.rmtree(folder / "temporary")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.binary(max_size=40))
def test_every_form_is_found_wherever_it_begins(key: bytes, before: bytes, after: bytes) -> None:
    search = SecretSearch({key: "data key"})
    for form in forms(key):
        assert search.kinds_in(before + form + after) == {"data key"}
    around = before + key + after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert search.kinds_in(encode(around)) == {"data key"}


@given(st.binary(min_size=32, max_size=32), st.integers(0, 31), st.integers(1, 255))
def test_another_key_is_not_found(key: bytes, where: int, bits: int) -> None:
    other = bytearray(key)
    other[where] ^= bits
    search = SecretSearch({key: "data key"})
    assert search.kinds_in(bytes(other) + bytes(other).hex().encode()) == set()


def test_a_file_is_searched_across_the_pieces_that_it_is_read_in(tmp_path: Path) -> None:
    key = os.urandom(32)
    search = SecretSearch({key: "data key"})
    for before in (4 * 1024 * 1024 - 16, 4 * 1024 * 1024 - 31, 8 * 1024 * 1024 - 1):
        (tmp_path / "file").write_bytes(bytes(before) + key + bytes(100))
        assert search.kinds_in_file(tmp_path / "file") == {"data key"}
