"""Rows F33-F38 of docs/faults.md at the Vault adapter, on a real OpenBao that is really harmed."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kms_service.adapters.data_key_cache import DataKeyCache
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession
from kms_service.development.authority import DevelopmentAuthority
from kms_service.development.openbao import OpenBao
from kms_service.domain.errors import (
    ServiceError,
    VaultAccessRefused,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
)
from tests.support import vault_servers
from tests.support.proxy import Proxy
from tests.support.vault_servers import VaultRig

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("vault-faults")]

CONTEXT = b"context"
KEY = "modelkms-faults"


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultRig]:
    """A server of our own: it will be killed, sealed and stopped."""
    with vault_servers.running("openbao", tmp_path_factory.mktemp("harmed")) as rig:
        rig.make_key(KEY)
        yield rig


@pytest.fixture
def server(vault: VaultRig) -> OpenBao:
    assert isinstance(vault.server, OpenBao)
    return vault.server


def test_f33_killed_and_restarted_it_recovers_unaided(vault: VaultRig, server: OpenBao) -> None:
    with vault.master_keys() as keys:
        data_key, wrapped = keys.generate_data_key(KEY, CONTEXT)
        server.kill()
        for _ in range(2):
            with pytest.raises(VaultUnavailable):
                keys.unwrap(KEY, wrapped, CONTEXT)
        server.start_again()
        # The pooled connection is stale, the token still good: raft kept it.
        _until(lambda: keys.unwrap(KEY, wrapped, CONTEXT).reveal() == data_key.reveal())


def test_f33_a_stale_pooled_connection_costs_no_caller_anything(vault: VaultRig) -> None:
    with Proxy(_port(vault)) as proxy, vault.master_keys(address=_at(proxy)) as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        proxy.cut()
        assert len(keys.unwrap(KEY, wrapped, CONTEXT)) == 32


def test_f34_paused_vault_costs_bounded_time_then_none(vault: VaultRig, server: OpenBao) -> None:
    """The kernel still accepts connections; the breaker then spares everybody the wait."""
    with vault.master_keys(timeout_s=0.3) as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(VaultUnavailable):
                    keys.unwrap(KEY, wrapped, CONTEXT)
            assert time.monotonic() - began < 9
            assert keys.status().breaker_open
            began = time.monotonic()
            with pytest.raises(VaultUnavailable):
                keys.unwrap(KEY, wrapped, CONTEXT)
            assert time.monotonic() - began < 0.25
        finally:
            os.kill(server.pid, signal.SIGCONT)
        _until(lambda: len(keys.unwrap(KEY, wrapped, CONTEXT)) == 32)
        assert not keys.status().breaker_open


def test_f35_sealed_is_told_as_sealed_and_heals(vault: VaultRig, server: OpenBao) -> None:
    with vault.master_keys() as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        vault.root.sys.seal()
        for _ in range(2):
            with pytest.raises(VaultSealed):
                keys.unwrap(KEY, wrapped, CONTEXT)
            with pytest.raises(VaultSealed):
                keys.probe()
        server.stop()
        server.start_again()  # the static seal opens it
        _until(lambda: len(keys.unwrap(KEY, wrapped, CONTEXT)) == 32)


def test_f35_throttled(vault: VaultRig) -> None:
    vault.root.write_data("sys/quotas/rate-limit/modelkms", data={"path": "transit", "rate": 1})
    try:
        with vault.master_keys() as keys, pytest.raises(VaultThrottled):
            _ = [keys.describe(KEY) for _ in range(20)]
    finally:
        vault.root.delete("sys/quotas/rate-limit/modelkms")


def test_f36_a_revoked_token_is_replaced_by_one_login(vault: VaultRig) -> None:
    with vault.master_keys() as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        _revoke_service_tokens(vault)
        assert len(keys.unwrap(KEY, wrapped, CONTEXT)) == 32


def test_f36_a_removed_policy_is_an_outage(vault: VaultRig) -> None:
    policy = vault.root.sys.read_policy("modelkms-service")["data"]["rules"]
    with vault.master_keys() as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        vault.root.sys.delete_policy("modelkms-service")
        try:
            with pytest.raises(VaultAccessRefused):
                keys.unwrap(KEY, wrapped, CONTEXT)
        finally:
            vault.root.sys.create_or_update_policy("modelkms-service", policy=policy)
        assert len(keys.unwrap(KEY, wrapped, CONTEXT)) == 32


def test_f36_a_wrong_secret_id_is_an_outage(vault: VaultRig, tmp_path: Path) -> None:
    wrong = tmp_path / "secret-id"
    wrong.write_text("00000000-0000-0000-0000-000000000000")
    session = VaultSession(replace(vault.settings(), secret_id_file=wrong))
    with pytest.raises(VaultAccessRefused):
        VaultMasterKeys(session, "transit").describe(KEY)
    session.close()


def test_f36_a_token_file_is_read_anew(vault: VaultRig, tmp_path: Path) -> None:
    """As Vault Agent keeps one."""
    token_file = tmp_path / "token"

    def new_token() -> None:
        made = vault.root.auth.token.create_orphan(policies=["modelkms-service"], ttl="1h")
        token_file.write_text(made["auth"]["client_token"])

    new_token()
    keys = VaultMasterKeys(
        VaultSession(replace(vault.settings(), role_id_file=None, token_file=token_file)), "transit"
    )
    try:
        keys.describe(KEY)
        vault.root.auth.token.revoke(token_file.read_text())
        new_token()
        keys.describe(KEY)
    finally:
        keys.close()


def test_f37_a_lost_reply_is_asked_for_again(vault: VaultRig) -> None:
    """datakey and decrypt may be repeated: a spare result is dropped."""
    with (
        Proxy(_port(vault)) as proxy,
        vault.master_keys(address=_at(proxy), timeout_s=0.5) as keys,
    ):
        keys.describe(KEY)
        proxy.swallow_replies = True
        threading.Timer(0.3, _stop_swallowing, (proxy,)).start()
        data_key, wrapped = keys.generate_data_key(KEY, CONTEXT)
        assert keys.unwrap(KEY, wrapped, CONTEXT).reveal() == data_key.reveal()


def test_f38_wrong_certificate(vault: VaultRig, tmp_path: Path) -> None:
    stranger = DevelopmentAuthority(tmp_path)
    session = VaultSession(replace(vault.settings(), ca_file=stranger.ca_file))
    with pytest.raises(VaultBadReply):
        VaultMasterKeys(session, "transit").describe(KEY)
    session.close()


_KEY_STATE = {
    "name": KEY,
    "type": "aes256-gcm96",
    "derived": True,
    "exportable": False,
    "allow_plaintext_backup": False,
    "latest_version": 1,
    "min_decryption_version": 1,
    "keys": {"1": 1},
    "auto_rotate_period": 0,
}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>maintenance</html>", VaultBadReply),
        (200, b'{"data": {"plaintext": "AAAA', VaultBadReply),
        (200, b"[]", VaultBadReply),
        (200, b'{"data": null}', VaultBadReply),
        (200, b'{"data": {"plaintext": "AAAA", "ciphertext": "vault:v1:AAAA"}}', VaultBadReply),
        (200, b'{"data": {"plaintext": 7, "ciphertext": "vault:v1:AAAA"}}', VaultBadReply),
        (
            200,
            b'{"data": {"plaintext": "%s", "ciphertext": "x"}}' % (b"A" * 43 + b"="),
            VaultBadReply,
        ),
        (302, b"", VaultBadReply),
        (418, b"{}", VaultBadReply),
        (502, b"<html>", VaultUnavailable),
        (503, b"<html>", VaultUnavailable),
        (429, b"{}", VaultThrottled),
    ],
)
def test_f38_replies_that_are_not_vaults(
    tmp_path: Path, vault: VaultRig, status: int, body: bytes, expected: type[ServiceError]
) -> None:
    with _impostor(tmp_path, status, body) as (address, ca_file):
        settings = replace(vault.settings(address=address), ca_file=ca_file)
        session = VaultSession(settings, sleep=lambda _: None)
        with pytest.raises(expected) as caught:
            VaultMasterKeys(session, "transit").generate_data_key(KEY, CONTEXT)
        assert body.decode() not in str(caught.value) or not body
        session.close()


def test_tokens_are_renewed_before_they_end(vault: VaultRig) -> None:
    vault.root.write_data("auth/approle/role/modelkms-service", data={"token_ttl": "2s"})
    try:
        with vault.master_keys() as keys:
            keys.describe(KEY)
            logins = _logins(vault)
            time.sleep(3.5)
            keys.describe(KEY)
            assert _logins(vault) == logins
    finally:
        vault.root.write_data("auth/approle/role/modelkms-service", data={"token_ttl": "1h"})


# --- helpers -------------------------------------------------------------------------------------


@contextmanager
def _impostor(folder: Path, status: int, body: bytes) -> Iterator[tuple[str, Path]]:
    """A TLS server that lets anybody log in, knows the key, and answers the rest with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path.endswith("/login"):
                self._answer(200, b'{"auth": {"client_token": "t", "lease_duration": 3600}}')
            elif self.path.endswith("/revoke-self"):
                self._answer(204, b"")
            else:
                self._answer(status, body)

        def do_GET(self) -> None:
            known = json.dumps({"data": _KEY_STATE, "sealed": False}).encode()
            self._answer(200, known)

        def _answer(self, status: int, body: bytes) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None: ...

    authority = DevelopmentAuthority(folder / "authority")
    certificate, key = authority.issue_server(folder / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", authority.ca_file
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- cached keys ---------------------------------------------------------------------------------


def test_f42_a_thousand_waiting_readers_cost_one_unwrap(vault: VaultRig) -> None:
    """Counted in OpenBao's own audit log; again after an outage, and after a restart."""
    with vault.master_keys() as keys:
        data_key, wrapped = keys.generate_data_key(KEY, CONTEXT)
        cache = _cache(keys)
        before = _unwraps(vault)
        with ThreadPoolExecutor(100) as readers:
            given = readers.map(lambda _: cache.unwrap(KEY, wrapped, CONTEXT).reveal(), range(1000))
            assert set(given) == {data_key.reveal()}
        assert _unwraps(vault) == before + 1


def test_f42_an_outage_outlasts_the_cache(vault: VaultRig, server: OpenBao) -> None:
    now = [0.0]
    with vault.master_keys(timeout_s=0.5) as keys:
        data_key, wrapped = keys.generate_data_key(KEY, CONTEXT)
        cache = _cache(keys, lambda: now[0])
        cache.unwrap(KEY, wrapped, CONTEXT)
        server.kill()
        try:
            now[0] = 100.0
            assert cache.unwrap(KEY, wrapped, CONTEXT).reveal() == data_key.reveal()
            assert cache.outage
            now[0] = 121.0
            with pytest.raises(VaultUnavailable):
                cache.unwrap(KEY, wrapped, CONTEXT)
        finally:
            server.start_again()
        _until(lambda: cache.unwrap(KEY, wrapped, CONTEXT).reveal() == data_key.reveal())
        assert not cache.outage


def test_f35_sealing_vault_stops_cached_keys_at_the_next_probe(
    vault: VaultRig, server: OpenBao
) -> None:
    with vault.master_keys() as keys:
        _, wrapped = keys.generate_data_key(KEY, CONTEXT)
        cache = _cache(keys)
        cache.unwrap(KEY, wrapped, CONTEXT)
        vault.root.sys.seal()
        try:
            with pytest.raises(VaultSealed):
                cache.probe()
            with pytest.raises(VaultSealed):
                cache.unwrap(KEY, wrapped, CONTEXT)
        finally:
            server.stop()
            server.start_again()


def _cache(keys: VaultMasterKeys, monotonic: Callable[[], float] = time.monotonic) -> DataKeyCache:
    return DataKeyCache(
        keys,
        ttl=timedelta(seconds=60),
        outage_grace=timedelta(seconds=60),
        max_keys=100,
        monotonic=monotonic,
        random=lambda: 0.0,
    )


def _unwraps(vault: VaultRig) -> int:
    """From OpenBao's own audit log: answered requests to unwrap under our key."""
    log = vault.server.ca_file.parents[1] / "audit.log"
    entries = (json.loads(line) for line in log.read_text().splitlines())
    return sum(
        entry["type"] == "response" and entry["request"]["path"] == f"transit/decrypt/{KEY}"
        for entry in entries
    )


def _revoke_service_tokens(vault: VaultRig) -> None:
    for accessor in vault.root.list("auth/token/accessors")["data"]["keys"]:
        looked_up = vault.root.auth.token.lookup_accessor(accessor)["data"]
        if "modelkms-service" in looked_up["policies"]:
            vault.root.auth.token.revoke_accessor(accessor)


def _logins(vault: VaultRig) -> int:
    """From OpenBao's own audit log."""
    log = vault.server.ca_file.parents[1] / "audit.log"
    return log.read_text().count('"auth/approle/login"')


def _stop_swallowing(proxy: Proxy) -> None:
    proxy.swallow_replies = False


def _port(vault: VaultRig) -> int:
    return int(vault.server.address.rpartition(":")[2])


def _at(proxy: Proxy) -> str:
    return f"https://127.0.0.1:{proxy.port}"


def _until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except ServiceError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(0.1)
