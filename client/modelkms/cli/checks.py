"""The checks of `modelkms doctor`, in the order in which one needs the other."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptography import x509

from modelkms.channel import why_unreachable
from modelkms.cli.common import Connect
from modelkms.cli.output import moment, size, span
from modelkms.errors import ModelKmsError
from modelkms.folders import free_bytes, make_private
from modelkms.identity import ClientIdentity
from modelkms.materialize import is_memory_backed
from modelkms.profile import Profile
from modelkms.swap import unsafe_swaps
from modelkms.types import Info

if TYPE_CHECKING:
    from modelkms.client import Client

Status = Literal["ok", "warning", "failed"]

_TIMEOUT_S = 5.0
_SOON = timedelta(days=7)
_SKEW = timedelta(seconds=60)
_SMALL_MEMORY_BYTES = 1 << 30
_SMALL_DISK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding(Info):
    """One result. `exit_code` is what the command ends with if this is the first failure."""

    check: str
    status: Status
    message: str
    hint: str = ""
    exit_code: int = 0


class Examination:
    """Runs the checks one by one. What cannot be checked because of a failure is left out."""

    def __init__(
        self, load_profile: Callable[[], Profile], connect: Connect, profile_name: str | None
    ) -> None:
        self._load_profile = load_profile
        self._connect = connect
        self._profile_name = profile_name
        self._failed = False

    def findings(self) -> Iterator[Finding]:
        """Each as soon as it is known."""
        try:
            profile = self._load_profile()
        except ModelKmsError as error:
            yield _failure("profile", error)
            return
        yield Finding("profile", "ok", f"{profile.described}, endpoint {profile.target}")
        yield from _storage(profile)
        try:
            identity = ClientIdentity.load(profile)
        except ModelKmsError as error:
            yield _failure("identity", error)
            return
        yield from _identity(identity, profile)
        reached = True
        for finding in _endpoint(profile, identity):
            reached = reached and finding.status != "failed"
            yield finding
        if reached:
            yield from self._service(profile)
            if profile.watch_endpoint is not None:
                yield _watch(profile, identity)
        if profile.vault is not None:
            yield _vault(profile)

    def _service(self, profile: Profile) -> Iterator[Finding]:
        try:
            with self._connect(self._profile_name) as client:
                who = client.whoami()
                if not who.accepted:
                    yield Finding(
                        "service",
                        "failed",
                        f"the service refuses this identity: {who.refusal}",
                        "the certificate must come from a CA and trust domain the service knows",
                        4,
                    )
                    return
                yield Finding("service", "ok", f"answers, and takes this identity: {who.spiffe_id}")
                yield from _policy(client, profile)
        except ModelKmsError as error:
            yield _failure("service", error)


# --- this machine ---------------------------------------------------------------------------------


def _storage(profile: Profile) -> Iterator[Finding]:
    yield _folder("cache", profile.cache_folder, "cache_dir")
    yield _folder("state", profile.state_folder, "state_dir")
    yield _memory(profile)
    if areas := unsafe_swaps():
        yield Finding(
            "memory",
            "warning",
            f"swap without encryption is in use ({', '.join(areas)}): plaintext may reach it",
            "encrypt it or do without; else plaintext is locked as far as RLIMIT_MEMLOCK allows",
        )


def _folder(check: str, folder: Path, field: str) -> Finding:
    """A folder that is ours alone, or one that can be made; with room."""
    hint = f"set {field} in the profile to a folder of your own on a disk with room"
    try:
        exists = folder.exists() or folder.is_symlink()
        if exists:
            make_private(folder)  # the rules by which it is used
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            return Finding(check, "failed", f"{nearest} cannot be written to", hint, 7)
        free = shutil.disk_usage(nearest).free
    except ModelKmsError as error:
        return _failure(check, error)
    except OSError as error:
        return Finding(check, "failed", f"{folder} cannot be used: {error.strerror}", hint, 7)
    told = f"{folder}: {size(free)} free" + ("" if exists else "; it is made when it is needed")
    return Finding(check, "warning" if free < _SMALL_DISK_BYTES else "ok", told, hint)


def _memory(profile: Profile) -> Finding:
    shared = Path("/dev/shm")  # noqa: S108 - where materialize.py writes, into a private folder
    if not is_memory_backed(shared) or not os.access(shared, os.W_OK | os.X_OK):
        if (insecure := profile.insecure_plaintext_dir) is not None:
            return Finding(
                "memory",
                "warning",
                f"{shared} is no writable tmpfs: `run` and materialize() write plaintext to a disk",
                f"insecure_plaintext_dir allows that ({insecure}): is that disk encrypted?",
            )
        return Finding(
            "memory",
            "warning",
            f"{shared} is no writable tmpfs: `run` and materialize() need one",
            f"mount a tmpfs at {shared}; cat, .read() and .open() need none",
        )
    free = free_bytes(shared)
    if free < _SMALL_MEMORY_BYTES:
        return Finding(
            "memory",
            "warning",
            f"{shared} has only {size(free)} free: larger models cannot be materialized",
            f"mount -o remount,size=4G {shared}, or in Docker --shm-size",
        )
    return Finding("memory", "ok", f"{shared}: {size(free)} free for materialized models")


# --- identity -------------------------------------------------------------------------------------


def _identity(identity: ClientIdentity, profile: Profile) -> Iterator[Finding]:
    try:
        yield Finding("identity", "ok", identity.principal)
    except ModelKmsError as error:
        yield _failure("identity", error)
    certificate = identity.certificate
    if certificate is None:
        return
    yield _validity(
        "certificate",
        f"{profile.certificate_file}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        "have a new client certificate issued",
    )
    assert profile.key_file is not None  # ClientIdentity.load demands it
    if stat.S_IMODE(profile.key_file.stat().st_mode) & 0o077:
        yield Finding(
            "key file",
            "warning",
            f"{profile.key_file} can be read by others",
            f"chmod 600 {profile.key_file}",
        )


def _validity(
    check: str, name: str, begins: datetime, ends: datetime, hint: str, now: datetime | None = None
) -> Finding:
    """Of a certificate, by this machine's clock: which may be what is wrong."""
    now = now or datetime.now(UTC)
    if now < begins:
        return Finding(
            check,
            "failed",
            f"{name} is not valid before {moment(begins)}; here it is {moment(now)}",
            "this machine's clock is behind, or the certificate was made too early",
            4,
        )
    if now > ends:
        return Finding(
            check,
            "failed",
            f"{name} expired at {moment(ends)}; here it is {moment(now)}",
            f"{hint}; if it should be valid, this machine's clock is ahead",
            4,
        )
    left = ends - now
    # Short-lived certificates (SPIFFE's last hours) are renewed at half of their life.
    if left < min(_SOON, (ends - begins) / 4):
        return Finding(check, "warning", f"{name} expires in {span(left)}", hint)
    return Finding(check, "ok", f"{name} is valid for {span(left)}")


# --- the way to the service -----------------------------------------------------------------------


def _endpoint(profile: Profile, identity: ClientIdentity) -> Iterator[Finding]:
    try:
        with socket.create_connection((profile.host, profile.port), timeout=_TIMEOUT_S):
            pass
    except OSError:
        yield _failure("endpoint", why_unreachable(profile, identity, _TIMEOUT_S))
        return
    yield Finding("endpoint", "ok", f"{profile.target} takes connections")
    try:
        certificate, version = _handshake(profile, identity)
    except OSError:  # ssl.SSLError is one
        yield _failure("tls", why_unreachable(profile, identity, _TIMEOUT_S))
        return
    yield Finding("tls", "ok", f"{version}, verified against {profile.ca_file}")
    yield _validity(
        "clock",
        "by this machine's clock, the service's certificate",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        "tell whoever runs the service to renew it",
    )


def _watch(profile: Profile, identity: ClientIdentity) -> Finding:
    """Where ends of leases are told. Without it they are asked for, so it is no failure."""
    there = profile.model_copy(update={"endpoint": profile.watch_endpoint})
    try:
        _, version = _handshake(there, identity)
    except OSError:
        return Finding(
            "watch",
            "warning",
            f"{there.target}: {why_unreachable(there, identity, _TIMEOUT_S).message}",
            "open models learn only with their next renewal, or when they ask, that a lease was "
            "ended: let this machine reach watch_endpoint",
        )
    return Finding("watch", "ok", f"{there.target} takes connections ({version})")


def _handshake(profile: Profile, identity: ClientIdentity) -> tuple[x509.Certificate, str]:
    """The service's certificate and the TLS version, once it has taken ours.

    Raises:
        OSError: it is not verified, or the service refuses ours.
    """
    context = ssl.create_default_context(cadata=identity.ca.decode("ascii", "replace"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if profile.certificate_file is not None:
        context.load_cert_chain(profile.certificate_file, profile.key_file)
    with (
        socket.create_connection((profile.host, profile.port), timeout=_TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=profile.host) as secure,
    ):
        encoded = secure.getpeercert(binary_form=True)
        # A refusal of our certificate comes with the first read (TLS 1.3).
        if not encoded or not secure.recv(1):
            raise ConnectionResetError("closed after the handshake")
        return x509.load_der_x509_certificate(encoded), secure.version() or "TLS"


# --- what the service lets this identity do -------------------------------------------------------


def _policy(client: Client, profile: Profile) -> Iterator[Finding]:
    if profile.project is None:
        projects = client.list_projects()
        names = ", ".join(project.id for project in projects) or "none"
        yield Finding("policy", "ok", f"projects that this identity may see: {names}")
        return
    try:
        models = client.list_models()
    except ModelKmsError as error:
        yield _failure("policy", error)
        return
    if not models:
        yield Finding(
            "policy",
            "warning",
            f"this identity sees no model in project {profile.project}",
            "push one, or ask the security team whether policy lets this identity read",
        )
        return
    counted = f"{len(models):,} model" + ("s" if len(models) != 1 else "")
    yield Finding("policy", "ok", f"may list project {profile.project}: {counted}")
    yield from _resolve(client, models[0].reference)
    newest = max((model.create_time for model in models if model.create_time), default=None)
    now = datetime.now(UTC)
    if newest is not None and newest > now + _SKEW:
        # A warning only: the service's time never goes back, so it may be ahead of a right clock.
        yield Finding(
            "clock",
            "warning",
            f"the service recorded a model {span(newest - now)} after what is now here",
            "one of the two clocks is wrong: compare both machines with a time server",
        )


def _resolve(client: Client, reference: str) -> Iterator[Finding]:
    try:
        version = client.resolve(reference)
    except ModelKmsError as error:
        # A model that has nothing published yet is not found either: no failure of this machine.
        told = _failure("policy", error)
        yield Finding(
            "policy", "warning", f"cannot resolve {reference}: {error.message}", told.hint
        )
        return
    yield Finding("policy", "ok", f"may resolve {reference}: {version.reference}")


def _vault(profile: Profile) -> Finding:
    """The officer's own login."""
    from modelkms.officer import Officer

    assert profile.vault is not None  # asked by the caller
    for file in (profile.vault.secret_id_file, profile.vault.token_file):
        if file is not None and file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
            return Finding("vault", "warning", f"{file} can be read by others", f"chmod 600 {file}")
    try:
        with Officer.from_profile(profile) as officer:
            officer.check_login()
    except ModelKmsError as error:
        return _failure("vault", error)
    return Finding("vault", "ok", f"{profile.vault.address} takes the officer's login")


def _failure(check: str, error: ModelKmsError) -> Finding:
    """With the decision id, if there is one: it is what the security team wants to hear."""
    decision = error.metadata.get("decision_id", "")
    message = f"{error.message} (decision {decision})" if decision else error.message
    return Finding(check, "failed", message, error.hint or "", error.exit_code)
