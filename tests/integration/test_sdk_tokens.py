"""The SDK with short-lived credentials: tokens from a file and a helper, certificates replaced
while it runs."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import modelkms
import pytest
from modelkms.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    ModelNotFoundOrDenied,
    TokenInvalid,
)
from modelkms.identity import ClientIdentity
from modelkms.profile import Profile
from modelkms.tokens import BearerToken, BearerTokens, run_helper
from modelkms_api.v1.watch_service_pb2 import WatchLeasesRequest
from modelkms_api.v1.watch_service_pb2_grpc import WatchServiceStub

from kms_service.adapters.clock import boottime_s
from kms_service.adapters.jwks import KeyCache, KeySource, fetcher
from kms_service.adapters.oidc import Issuer, TokenVerifier
from kms_service.domain.decisions import Action
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.server import TokenPort
from kms_service.rpc.tls import ReloadingCredentials, TlsFiles
from kms_service.rpc.watch_server import WatchLimits, WatchServer
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer, oidc_issuer
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.support.server import TRUST_DOMAIN, WallClock, refusal
from tests.unit.usecases.real_parts import migrated_database


@dataclass
class Rig:
    world: SdkWorld
    issuer: OidcIssuer
    folder: Path
    verifier: TokenVerifier

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def write_token(self, **claims: object) -> str:
        token = self.issuer.service_account("prod", "app", **claims)
        temporary = self.folder / ".token"
        temporary.write_text(token + "\n")
        temporary.replace(self.token_file)
        return token

    def client(self, **overrides: object) -> modelkms.Client:
        """Without a certificate, on the token port."""
        settings = {
            **self.world.profile("reader"),
            "endpoint": f"localhost:{self.world.server.server.token_port}",
            "certificate_file": None,
            "key_file": None,
            **overrides,
        }
        return self.world.clients.enter_context(modelkms.connect(None, observer=None, **settings))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    with ExitStack() as stack:
        issuer = stack.enter_context(oidc_issuer(folder / "issuer"))
        keys = KeyCache(fetcher(KeySource(issuer.url, ca_file=issuer.ca_file)), boottime_s)
        trusted = Issuer("k8s", issuer.url, (AUDIENCE,), ("ES256",), "groups", keys)
        template = migrated_database(folder)
        verifier = TokenVerifier([trusted], WallClock())
        world = stack.enter_context(sdk_world(folder, template, tokens=verifier))
        # Policy here goes by path, which a token has not: whoever has a token may read and publish.
        world.world.policy.grants |= {("", action, None) for action in Action}
        yield Rig(world, issuer, folder, verifier)


def test_a_pod_publishes_and_opens_with_its_service_account(rig: Rig) -> None:
    rig.write_token()
    client = rig.client(token_file=rig.token_file)
    model = rig.folder / "model.bin"
    model.write_bytes(b"weights" * 1000)
    pushed = client.push(model, "by-token")
    assert pushed.version.publisher == "oidc:k8s:system:serviceaccount:prod:app"
    with client.open("by-token") as opened, opened.open() as file:
        assert file.read() == model.read_bytes()
    (lease,) = [each for each in client.list_leases() if each.principal.startswith("oidc:")]
    assert len(set(lease.instance)) > 1
    who = client.whoami()
    assert (who.subject, who.accepted) == ("system:serviceaccount:prod:app", True)
    assert who.not_after is not None


def test_a_pod_hears_of_its_revoked_lease(rig: Rig) -> None:
    """On the token port of watches, beside one for certificates."""
    server, world = rig.world.server, rig.world.world
    names = (server.tls_folder / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    files = TlsFiles(*names)
    watches = WatchServer(
        "127.0.0.1:0",
        ReloadingCredentials(files, server.metrics).grpc,
        Authenticator([TRUST_DOMAIN], server.clock, tokens=rig.verifier),
        world.own_leases,
        world.database,
        server.metrics,
        WatchLimits(heartbeat_s=1.0),
        TokenPort(
            "127.0.0.1:0",
            ReloadingCredentials(files, server.metrics, ask_for_certificate=False).grpc,
        ),
    )
    watches.start()
    try:
        rig.write_token()
        client = rig.client(
            token_file=rig.token_file, watch_endpoint=f"localhost:{watches.token_port}"
        )
        model = rig.folder / "watched.bin"
        model.write_bytes(b"weights")
        client.push(model, "watched")
        with client.open("watched") as opened:
            _until(lambda: len(watches) == 1)
            rig.world.client("security").revoke_leases(lease=opened.lease.name)
            _until(lambda: opened.ended is not None)
        bare = grpc.ssl_channel_credentials((server.tls_folder / "ca.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{watches.token_port}", bare) as channel:
            request = WatchLeasesRequest(leases=[opened.lease.name])
            stream = WatchServiceStub(channel).WatchLeases(request, timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
        assert refusal(caught.value).reason == "CREDENTIAL_MISSING"
    finally:
        watches.stop(0)


def test_a_replaced_token_file_is_taken_and_an_expired_token_named(rig: Rig) -> None:
    rig.write_token(exp=int(time.time()) - 5)
    client = rig.client(token_file=rig.token_file)
    with pytest.raises(TokenInvalid):
        client.list_projects()
    rig.write_token()
    # What was refused is not used again: no second has to pass.
    assert client.list_projects()


def test_a_token_file_that_is_not_there_or_no_token(rig: Rig) -> None:
    with pytest.raises(CredentialMissing, match="does not exist"):
        rig.client(token_file=rig.folder / "absent").list_projects()
    broken = rig.folder / "broken"
    for content in ("", "two\nlines", "a b", "\u00e9", "x" * 9000):
        broken.write_text(content)
        with pytest.raises(CredentialInvalid):
            rig.client(token_file=broken).list_projects()


def helper(folder: Path, *lines: str) -> list[str]:
    """An executable that counts its runs."""
    file = folder / "helper"
    count = f"open({str(folder / 'runs')!r}, 'a').write('x')"
    file.write_text("\n".join((f"#!{sys.executable}", count, *lines)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return [str(file)]


@pytest.mark.parametrize("form", ["plain", "ExecCredential"])
def test_a_helper_is_run_once_while_its_token_lasts(rig: Rig, tmp_path: Path, form: str) -> None:
    token = rig.write_token()
    status = {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}
    credential = {"kind": "ExecCredential", "status": status}
    printed = token if form == "plain" else json.dumps(credential)
    client = rig.client(token_exec=helper(tmp_path, f"print({printed!r})"))
    for _ in range(3):
        assert client.list_projects()
    assert (tmp_path / "runs").read_text() == "x"


def test_a_helper_that_fails_is_told_without_what_it_printed(tmp_path: Path) -> None:
    canary = "canarycanary"
    for lines in (
        (f"print({canary!r})", "raise SystemExit(3)"),
        (f"print({canary!r} + chr(10) + 'more')",),
        (f"print('{{' + {canary!r})",),
        ("print('{\"status\": {}}')",),
    ):
        with pytest.raises(CredentialInvalid) as caught:
            run_helper(helper(tmp_path, *lines))
        assert canary not in str(caught.value)
    for command in ([], [str(tmp_path / "absent")], [""]):
        with pytest.raises(CredentialMissing):
            run_helper(command)


def test_a_helper_is_run_again_before_its_token_ends() -> None:
    fetched: list[BearerToken] = []

    def fetch() -> BearerToken:
        fetched.append(BearerToken("t", datetime.now(UTC) + timedelta(seconds=0.5)))
        return fetched[-1]

    profile = Profile.model_validate({"endpoint": "h", "ca_file": "c", "token_exec": ["x"]})
    tokens = BearerTokens.of(profile)
    assert tokens is not None
    tokens._fetch = fetch
    first = tokens.current()
    assert tokens.current() is first
    end = time.monotonic() + 10
    while tokens.current() is first:
        assert time.monotonic() < end
    assert first.expires is not None
    assert datetime.now(UTC) < first.expires + timedelta(seconds=5)


def test_a_token_is_never_shown() -> None:
    token = BearerToken.read("abc.def.ghi")
    assert "abc.def.ghi" not in f"{token!r}{token}"


def test_an_answer_to_another_subject_is_refused(rig: Rig) -> None:
    rig.write_token()
    profile = Profile.model_validate(
        {"endpoint": "h", "ca_file": rig.issuer.ca_file, "token_file": rig.token_file}
    )
    identity = ClientIdentity.load(profile)
    mine = "oidc:any-name:system:serviceaccount:prod:app"
    assert identity.principal_as_told(mine) == mine
    for told in ("oidc:k8s:admin", "spiffe://a/system:serviceaccount:prod:app", mine + "2", "oidc:",
                 "oidc:a:b:system:serviceaccount:prod:app"):  # fmt: skip
        with pytest.raises(modelkms.ModelKmsError, match="another identity"):
            identity.principal_as_told(told)


# --- certificates --------------------------------------------------------------------------------


@pytest.mark.faults
def test_replaced_certificate_files_are_taken_without_a_new_client(rig: Rig) -> None:
    """As a SPIFFE agent does: a new key and certificate, before the old one ends."""
    home = rig.folder / "home" / "security"
    client = rig.world.client("security")
    assert client.list_projects()
    before = client.whoami().instance
    rig.world.server.authority.client("security").write(home)
    end = time.monotonic() + 20
    while client.whoami().instance == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert client.list_projects()


@pytest.mark.faults
def test_half_replaced_files_are_not_used_until_they_fit(rig: Rig) -> None:
    home = rig.folder / "home" / "publisher"
    client = rig.world.client("publisher")
    before = client.whoami().instance
    successor = rig.world.server.authority.client("publisher")
    (home / "certificate.pem").write_bytes(successor.certificate)  # the key is still the old one
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert client.whoami().instance == before
        time.sleep(0.2)
    (home / "key.pem").write_bytes(successor.key)
    end = time.monotonic() + 20
    while client.whoami().instance == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert client.whoami().instance == successor.instance


@pytest.mark.faults
def test_f08_a_client_outlives_its_first_certificate(rig: Rig) -> None:
    home = rig.folder / "home" / "reader"
    rig.world.profile("reader")
    authority = rig.world.server.authority
    authority.client("reader", lifetime=timedelta(seconds=3)).write(home)
    client = rig.world.client("reader")
    assert client.list_projects()
    time.sleep(3.1)
    with pytest.raises(CredentialExpired):
        client.list_projects()
    authority.client("reader").write(home)
    end = time.monotonic() + 20
    while True:
        try:
            assert client.list_projects()
            break
        except CredentialExpired:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_stranger_is_told_the_same_by_either_port(rig: Rig) -> None:
    rig.write_token()
    rig.world.world.policy.grants -= {("", Action.RESOLVE_MODEL, None)}
    try:
        for client in (rig.client(token_file=rig.token_file), rig.world.client("stranger")):
            with pytest.raises(ModelNotFoundOrDenied):
                client.resolve("by-token")
    finally:
        rig.world.world.policy.grants |= {("", Action.RESOLVE_MODEL, None)}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
