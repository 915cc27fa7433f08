"""A rewrap of limited rate, and fifty clients who lease keys of random versions meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.rewrap_load import observe
from tests.support.postgresql import PostgresServer
from tests.support.vault_servers import VaultRig

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("postgresql")]

_KEYS = 2000
_QUIET_S = 2.0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_f59_no_client_is_refused_while_keys_move(
    request: pytest.FixtureRequest,
    vault_of: Callable[[str], VaultRig],
    tmp_path: Path,
    kind: str,
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/state.db"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
    quiet, during = observe(tmp_path / "service", url, vault_of("openbao"), _KEYS, _QUIET_S)
    assert (quiet.errors, during.errors) == ([], [])
    assert len(during.seconds) > 50
