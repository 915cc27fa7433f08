"""A thousand clients, each with a TLS key and a connection of its own: how long until the last has
its key when all start at once, and until all know that it was revoked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import modelkms

from kms_service.development.authority import DevelopmentAuthority
from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.bench.leases import publish_small_model
from tests.bench.measure import table
from tests.support.watch_load import many_watchers

_MODEL = f"projects/{PROJECT}/models/bench"


def run(folder: Path, clients: int) -> str:
    """The table as Markdown."""
    with DevelopmentStack(folder / "stack") as stack:
        publish_small_model(stack, folder)
        folders = identities(stack, folder / "fleet", clients)
        stack.restart_service()  # with no key in memory
        before = _unwraps(stack)
        leased = cold_start(stack, folders)
        unwraps = _unwraps(stack) - before
        told_s = _revoke(stack, folders, [each["lease"] for each in leased])
    key_s = sorted(each["seconds"] for each in leased)
    retries = sum(each["attempts"] - 1 for each in leased)
    return (
        f"## A fleet of {clients:,} clients\n\n"
        "Service, Vault and clients on the same cores. Seconds from the start of all clients, TLS\n"
        "handshakes included; and from `RevokeLeases` until the watch of a client says\n"
        f"so. Vault unwrapped {unwraps} time(s), by its own audit log; the service asked clients\n"
        f"{retries:,} times to come again later.\n\n"
        + table(
            ("what", "p50 s", "p99 s", "last s"),
            [
                ("cold start to the key", *_percentiles(key_s)),
                ("revocation to the client", *_percentiles(sorted(told_s))),
            ],
        )
    )


def _percentiles(ordered: list[float]) -> list[str]:
    last = len(ordered) - 1
    return [f"{ordered[round(last * share)]:.2f}" for share in (0.5, 0.99, 1.0)]


def identities(stack: DevelopmentStack, folder: Path, clients: int) -> list[str]:
    """A certificate of `reader` and a TLS key of its own for each."""
    authority = DevelopmentAuthority(stack.paths.root / "authority")
    folders = []
    for number in range(clients):
        each = folder / str(number)
        authority.issue_identity(each, "reader")
        shutil.copy(authority.ca_file, each / "ca.pem")
        folders.append(str(each))
    return folders


def cold_start(stack: DevelopmentStack, folders: list[str]) -> list[dict[str, Any]]:
    ca_file = str(stack.paths.root / "authority" / "ca.pem")
    wishes = {"port": stack.grpc_port, "model": _MODEL, "folders": folders, "ca_file": ca_file}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.fleet_load"],
        input=json.dumps(wishes),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    leased: list[dict[str, Any]] = json.loads(done.stdout)
    return leased


def _revoke(stack: DevelopmentStack, folders: list[str], leases: list[str]) -> list[float]:
    """Seconds from the call until each watching client was told."""
    holders: list[dict[str, object]] = [
        {"folder": folder, "leases": [lease]} for folder, lease in zip(folders, leases, strict=True)
    ]
    with many_watchers(stack.watch_port, holders) as said:
        if said.readline() != "ready\n":
            raise RuntimeError("the watchers did not all begin")
        with modelkms.connect(stack.paths.profile("security")) as security:
            began = time.monotonic()
            security.revoke_leases(model=f"{PROJECT}/bench")
            told: list[float] = json.loads(said.readline())
    return [at - began for at in told]


def _unwraps(stack: DevelopmentStack) -> int:
    """By OpenBao's own audit log."""
    log = (stack.paths.root / "vault" / "audit.log").read_text()
    entries = (json.loads(line) for line in log.splitlines())
    return sum(
        entry["type"] == "response" and entry["request"]["path"].startswith("transit/decrypt/")
        for entry in entries
    )
