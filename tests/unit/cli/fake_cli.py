"""`python -m tests.unit.cli.fake_cli …`: the real command line in a process of its own, on a fake
service that has `demo/file` (one file) and `demo/folder`."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from modelkms.cli.__main__ import main
from modelkms.errors import LeaseRevoked
from modelkms.types import LeaseEvent

from tests.unit.cli.fake_client import FakeService

if TYPE_CHECKING:
    from modelkms.client import Client

FILE = b"weights of one file"
FOLDER = {"config.json": b"{}", "weights/a.bin": bytes(range(256)) * 100}


def service() -> FakeService:
    made = FakeService()
    made.publish("file", {"model.onnx": FILE})
    made.publish("folder", FOLDER)
    return made


def connect(profile: str | None) -> Client:
    """As a slow network would have it, where FAKE_DELAY_S says so."""
    if delay_s := os.environ.get("FAKE_DELAY_S"):
        sys.stderr.write("connecting\n")
        sys.stderr.flush()
        time.sleep(float(delay_s))
    made = service()
    if revoked_by := os.environ.get("FAKE_REVOKED_BY"):
        threading.Thread(target=_revoke, args=(made, Path(revoked_by)), daemon=True).start()
    return made.connect(profile)


def _revoke(made: FakeService, sign: Path) -> None:
    """The lease ends once there is a file of this name."""
    while not sign.exists() or made.on_lease_event is None:
        time.sleep(0.01)
    error = LeaseRevoked("the lease of demo/file@1 was ended by the service")
    made.on_lease_event(LeaseEvent("ended", "demo/file@1", "projects/demo/leases/1", error))


if __name__ == "__main__":
    sys.exit(main(connect=connect))
