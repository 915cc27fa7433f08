"""Real Vaults, each started at its first use and shared by a worker's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support import vault_servers
from tests.support.vault_servers import VaultRig


@pytest.fixture(scope="session")
def vault_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], VaultRig]]:
    """`vault_of("openbao")` is a running, set-up server."""
    running: dict[str, VaultRig] = {}
    with ExitStack() as stack:

        def of(kind: str) -> VaultRig:
            if kind not in running:
                folder = tmp_path_factory.mktemp(kind)
                running[kind] = stack.enter_context(vault_servers.running(kind, folder))
            return running[kind]

        yield of
