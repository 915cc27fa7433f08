"""Writes docs/guides/dashboard.md and dashboard.svg from two minutes of a running stack."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import modelkms

from kms_service.development.openbao import OpenBao
from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.dashboard.answers import lines_of
from tests.dashboard.page import page
from tests.dashboard.picture import picture
from tests.support.prometheus import panels, running
from tests.support.tools import REPOSITORY

GUIDES = REPOSITORY / "docs" / "guides"
VERSIONS = 40
STEP_S = 1.0


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with DevelopmentStack(folder / "stack") as stack:
            (folder / "prometheus").mkdir()
            with running(folder / "prometheus", [stack.metrics_port]) as prometheus:
                start = time.time()
                _use(stack, folder)
                end = time.time()
                answers = {
                    panel["id"]: lines_of(prometheus, panel, start, end, STEP_S)
                    for panel in panels()
                    if panel["type"] != "row"
                }
    (GUIDES / "dashboard.md").write_text(page(panels(), answers))
    (GUIDES / "dashboard.svg").write_text(picture(panels(), answers))
    sys.stdout.write(f"wrote {GUIDES / 'dashboard.md'} and dashboard.svg\n")


def _use(stack: DevelopmentStack, folder: Path) -> None:
    """Two minutes in which everything happens that a panel shows."""
    over = threading.Event()
    _publish(stack, folder, 1)
    users = [
        threading.Thread(target=_again_and_again, args=(act, over))
        for act in (_reader(stack), _reader(stack), _stranger(stack))
    ]
    for user in users:
        user.start()
    _publish(stack, folder, VERSIONS)
    time.sleep(10)
    _admin(stack, "lease", "revoke", "--model", f"{PROJECT}/face")
    time.sleep(5)
    _admin(stack, "admin", "master-key", "rotate", PROJECT)
    time.sleep(65)  # the service looks for new versions of master keys once a minute
    _admin(stack, "admin", "master-key", "rewrap", PROJECT)
    vault = stack.vault
    assert isinstance(vault, OpenBao)
    vault.kill()
    time.sleep(8)
    vault.start_again()
    time.sleep(25)
    over.set()
    for user in users:
        user.join()


def _publish(stack: DevelopmentStack, folder: Path, count: int) -> None:
    with modelkms.connect(stack.paths.profile("publisher")) as client:
        for number in range(count):
            file = folder / "model.bin"
            file.write_bytes(b"weights" * 10_000 + str(number).encode())
            client.push(file, f"{PROJECT}/face")


def _reader(stack: DevelopmentStack) -> Callable[[], None]:
    """Opens the model as a fresh process would, and reads all of it."""

    def act() -> None:
        profile = stack.paths.profile("reader")
        with modelkms.connect(profile) as client, client.open(f"{PROJECT}/face") as model:
            for _ in range(3):
                model.read()
                time.sleep(0.1)

    return act


def _stranger(stack: DevelopmentStack) -> Callable[[], None]:
    def act() -> None:
        time.sleep(0.5)
        with modelkms.connect(stack.paths.profile("stranger")) as client:
            client.resolve(f"{PROJECT}/face")

    return act


def _again_and_again(act: Callable[[], None], over: threading.Event) -> None:
    while not over.is_set():
        with contextlib.suppress(modelkms.ModelKmsError):
            act()


def _admin(stack: DevelopmentStack, *arguments: str) -> None:
    program = Path(sys.executable).with_name("modelkms")
    profile = str(stack.paths.profile("security"))
    subprocess.run([program, "--profile", profile, *arguments], check=True, timeout=120)


if __name__ == "__main__":
    main()
