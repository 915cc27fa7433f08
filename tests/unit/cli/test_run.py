"""`run` with real child processes: path, signals, exit code, and what is left (nothing)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.cli.fake_cli import FILE, FOLDER
from tests.unit.cli.terminal import on_terminal

_RUN = (sys.executable, "-m", "tests.unit.cli.fake_cli", "run")
_SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"]

# Tells each signal that it gets, until there were so many; ends with 40 + how many.
_LISTENER = """
import signal, sys, time
got = []
def take(number, frame):
    got.append(number)
    print("got", signal.Signals(number).name, flush=True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT,
               signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, take)
print(sys.argv[1], flush=True)
deadline = time.monotonic() + 20
while len(got) < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(40 + len(got))
"""


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_RUN, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def _started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*_RUN, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- the model -----------------------------------------------------------------------------------


def test_a_file_is_a_file_and_is_gone_afterwards() -> None:
    script = (
        "import os, sys; path = sys.argv[1]; assert os.environ['MODELKMS_MODEL_PATH'] == path;"
        "sys.stdout.write(path + '\\n' + open(path).read())"
    )
    done = _run("file", "--", sys.executable, "-c", script, "{model}")
    assert done.returncode == 0, done.stderr
    path, content = done.stdout.splitlines()
    assert content.encode() == FILE
    assert path.startswith("/dev/shm/")
    assert path.endswith("/model.onnx")
    assert not Path(path).parent.exists()


def test_trace_tells_where_the_time_went(cli: Cli) -> None:
    done = cli("run", "file", "--trace", "--", "true")
    assert done.code == 0
    assert (
        "trace: resolve 0.000 s, lease 0.250 s, download 0.000 s, decrypt 1.500 s, load 0.000 s"
    ) in done.err
    done = cli("--json", "run", "file", "--trace", "--", "true")
    assert json.loads(done.err)["trace"]["lease_s"] == 0.25


def test_a_folder_is_a_folder() -> None:
    script = (
        "import pathlib, sys; root = pathlib.Path(sys.argv[1].removeprefix('--model='));"
        "print(*sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()))"
    )
    done = _run("folder", "--", sys.executable, "-c", script, "--model={model}")
    assert done.stdout.split() == sorted(FOLDER), done.stderr


def test_the_rest_of_the_command_is_its_own() -> None:
    """Options of ours behind `--` are the command's; braces are replaced where they stand."""
    done = _run("file", "--", "printf", "%s\n", "--json", "--profile", "--", "a{model}b", "{x}")
    assert done.returncode == 0
    *own, model, braces = done.stdout.splitlines()
    assert own == ["--json", "--profile", "--"]
    assert model.startswith("a/")
    assert model.endswith("model.onnxb")
    assert braces == "{x}"


# --- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 2, 255])
def test_exit_codes_are_the_commands(cli: Cli, code: int) -> None:
    done = cli("run", "file", "--", "sh", "-c", f"exit {code}")
    assert (done.code, done.err) == (code, "")


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_ended_by_a_signal(cli: Cli, name: str) -> None:
    done = cli("run", "file", "--", "sh", "-c", f"kill -{name} $$")
    assert done.code == 128 + signal.Signals[f"SIG{name}"]


def test_own_failures(cli: Cli, tmp_path: Path) -> None:
    not_executable = tmp_path / "script"
    not_executable.write_text("#!/bin/sh\n")
    no_program = tmp_path / "garbage"
    no_program.write_bytes(b"\x7fELF nonsense")
    no_program.chmod(0o700)
    for command, code in (
        ("no-such-command", 127),
        (str(tmp_path / "nothing"), 127),
        (f"{not_executable}/x", 127),
        (str(not_executable), 126),
        (str(tmp_path), 126),
        (str(no_program), 126),
        ("", 125),
    ):
        done = cli("run", "file", "--", command)
        assert done.code == code, (command, done.err)
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err
    assert cli("run", "no-such-model", "--", "true").code == 125


def test_this_process_is_as_it_was(cli: Cli) -> None:
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    mask, threads = signal.pthread_sigmask(signal.SIG_BLOCK, []), threading.active_count()
    cli("run", "file", "--", "true")
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert threading.active_count() == threads


# --- signals -------------------------------------------------------------------------------------


def test_signals_are_passed_on_each_once() -> None:
    count = str(len(_SIGNALS))
    with _started("file", "--", sys.executable, "-c", _LISTENER, "{model}", count) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        assert Path(path).exists()
        for name in _SIGNALS:
            process.send_signal(signal.Signals[name])
            assert process.stdout.readline() == f"got {name}\n"
        told, _ = process.communicate(timeout=30)
    assert told == ""
    assert process.returncode == 40 + len(_SIGNALS)
    assert not Path(path).parent.exists()


def test_a_signal_that_ends_the_command() -> None:
    with _started("file", "--", "sh", "-c", "echo {model}; exec sleep 60") as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not Path(path).parent.exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_command_starts(name: str) -> None:
    with _started("file", "--", "echo", "started", FAKE_DELAY_S="20") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "connecting\n"
        process.send_signal(signal.Signals[name])
        told, _ = process.communicate(timeout=10)
    assert told == ""
    assert process.returncode == 128 + signal.Signals[name]


def test_ctrl_c_reaches_the_command_once() -> None:
    """The terminal sends it to the whole foreground group: passing it on would double it."""
    command = [*_RUN, "file", "--", sys.executable, "-c", _LISTENER, "ready", "1"]
    with on_terminal(command) as terminal:
        terminal.read_until("ready")
        terminal.type(b"\x03")
        assert terminal.finish() == 41
        assert terminal.told.count("got SIGINT") == 1, terminal.told


def test_what_was_ignored_stays_ignored() -> None:
    """nohup modelkms run …: SIGHUP neither ends it nor reaches the command."""
    script = "import signal; print(signal.getsignal(signal.SIGHUP).name, flush=True)"
    python = (sys.executable, "-c", script)
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *_RUN, "file", "--", *python],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "SIG_IGN\n", done.stderr


def test_the_command_starts_with_the_systems_defaults() -> None:
    done = _run("file", "--", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in done.stdout.splitlines())
    assert blocked == 0
    assert ignored & 0x7FFFFFFF == 0  # 32 and above are the C library's own


def test_killed_leaves_no_plaintext() -> None:
    with _started("file", "--", "sh", "-c", "echo $$ {model}; exec sleep 60") as process:
        assert process.stdout is not None
        pid, _, name = process.stdout.readline().strip().partition(" ")
        path = Path(name)
        assert path.exists()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while path.parent.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(int(pid), signal.SIGTERM)  # nobody is left to pass it on


def test_f55_no_core_files() -> None:
    script = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    done = _run("file", "--", sys.executable, "-c", script)
    assert done.stdout == "(0, 0)\n"


# --- a lease that is ended under it --------------------------------------------------------------

# Says that it runs by making the file that revokes the lease; takes SIGTERM as it is told.
_HOLDER = """
import os, pathlib, signal, sys, time
def take(number, frame):
    print("got", signal.Signals(number).name, os.path.exists(sys.argv[1]), flush=True)
    if sys.argv[3] == "obedient":
        sys.exit(7)
signal.signal(signal.SIGTERM, take)
pathlib.Path(sys.argv[2]).touch()
time.sleep(float(sys.argv[4]))
print("done", os.path.exists(sys.argv[1]), flush=True)
"""


def _hold(
    sign: Path, *options: str, manners: str = "obedient", for_s: float = 60
) -> subprocess.CompletedProcess[str]:
    holder = (sys.executable, "-c", _HOLDER, "{model}", str(sign), manners, str(for_s))
    return _run("file", *options, "--", *holder, FAKE_REVOKED_BY=str(sign))


def test_a_revoked_lease_ends_the_command_with_sigterm(tmp_path: Path) -> None:
    """It has its files while it shuts down, and they are gone afterwards."""
    done = _hold(tmp_path / "sign")
    assert (done.returncode, done.stdout) == (7, "got SIGTERM True\n")
    assert (
        "warning: the lease of demo/file@1 was ended by the service; the command is" in done.stderr
    )


def test_a_command_that_does_not_end_within_the_grace_is_killed(tmp_path: Path) -> None:
    done = _hold(tmp_path / "sign", "--grace", "1s", manners="stubborn")
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "got SIGTERM True\n")


def test_on_revoke_kill(tmp_path: Path) -> None:
    done = _hold(tmp_path / "sign", "--on-revoke", "kill")
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "")


def test_on_revoke_keep(tmp_path: Path) -> None:
    done = _hold(tmp_path / "sign", "--on-revoke", "keep", for_s=1.5)
    assert (done.returncode, done.stdout) == (0, "done True\n")
    assert "the command goes on" in done.stderr


@pytest.mark.parametrize("grace", ["", "60", "1d", "-1s"])
def test_a_grace_that_is_none(grace: str) -> None:
    done = _run("file", f"--grace={grace}", "--", "true")
    assert done.returncode == 125
    assert "is no duration" in done.stderr
