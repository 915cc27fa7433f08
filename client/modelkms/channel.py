"""The way to the service: a TLS channel, and the name of what is wrong when TLS refuses."""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import grpc

from modelkms import __version__
from modelkms.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    ModelKmsError,
    ServerNotTrusted,
    ServiceUnavailable,
    TlsVersionTooOld,
)
from modelkms.identity import ClientIdentity
from modelkms.profile import Profile
from modelkms.tokens import BearerPlugin

MAX_MESSAGE_BYTES = 8 << 20
_PROBE_TIMEOUT_S = 5.0

# TLS alerts by which a TLS 1.3 server says what it holds against the client's certificate
# (RFC 8446 §6.2); OpenSSL names the first ones after SSL 3.
_ALERTS: tuple[tuple[str, type[ModelKmsError], str], ...] = (
    ("CERTIFICATE_REQUIRED", CredentialMissing, "it demands a client certificate and got none"),
    ("CERTIFICATE_EXPIRED", CredentialExpired, "it says that the client certificate has expired"),
    ("UNKNOWN_CA", CredentialInvalid, "it does not know the CA of the client certificate"),
    ("CERTIFICATE_UNKNOWN", CredentialInvalid, "it does not accept the client certificate"),
    ("BAD_CERTIFICATE", CredentialInvalid, "it does not accept the client certificate"),
    ("UNSUPPORTED_CERTIFICATE", CredentialInvalid, "it cannot use the client certificate"),
    ("CERTIFICATE_REVOKED", CredentialInvalid, "it says that the client certificate is revoked"),
    ("ACCESS_DENIED", CredentialInvalid, "it refuses the client certificate"),
    ("HANDSHAKE_FAILURE", CredentialInvalid, "it refuses the handshake"),
    ("PROTOCOL_VERSION", TlsVersionTooOld, "it speaks another version of TLS"),
)


def open_channel(profile: Profile, identity: ClientIdentity) -> grpc.Channel:
    """A channel to the profile's endpoint; connects when first used.

    `GRPC_SSL_CIPHER_SUITES` is the host process's affair: it is neither read nor set here. TLS 1.3
    is the server's demand.
    """
    key = identity.private_key
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.ca,
        private_key=key.reveal() if key is not None else None,
        certificate_chain=identity.certificate_chain,
    )
    if identity.tokens is not None:
        plugin = BearerPlugin(identity.tokens, identity.own_instance)
        bearer = grpc.metadata_call_credentials(plugin, "modelkms-bearer")
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    return grpc.secure_channel(
        profile.target,
        credentials,
        options=[
            ("grpc.primary_user_agent", f"modelkms/{__version__}"),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.enable_retries", 0),  # session.py retries, and knows what may be repeated
            # Channels are otherwise shared by target and arguments inside the process.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def why_unreachable(
    profile: Profile, identity: ClientIdentity, timeout_s: float = _PROBE_TIMEOUT_S
) -> ModelKmsError:
    """What a bare UNAVAILABLE hides: one handshake with the same files, outside gRPC.

    Never raises. Where the handshake succeeds, the service itself is the cause.
    """
    target = profile.target
    try:
        return _handshake(profile, identity, timeout_s)
    except ssl.SSLCertVerificationError as error:
        return ServerNotTrusted(
            f"the service at {target} shows a certificate that does not verify against "
            f"{profile.ca_file}: {error.verify_message}"
        )
    except ssl.SSLError as error:
        return _refusal(error, profile, identity)
    except socket.gaierror:
        return ServiceUnavailable(
            f"the host of {target} is not known",
            hint=f"check endpoint in {profile.described}, and this machine's DNS",
        )
    except ConnectionRefusedError:
        return ServiceUnavailable(
            f"nothing listens at {target}",
            hint=f"start the service, or check endpoint in {profile.described}",
        )
    except TimeoutError:
        return ServiceUnavailable(
            f"{target} does not answer",
            hint="check the network, firewalls and the service's health",
        )
    except OSError as error:
        return ServiceUnavailable(f"{target} cannot be reached: {error.strerror or 'I/O error'}")


def _handshake(profile: Profile, identity: ClientIdentity, timeout_s: float) -> ModelKmsError:
    context = ssl.create_default_context(cadata=identity.ca.decode("ascii", "replace"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if profile.certificate_file is not None:
        with contextlib.suppress(ssl.SSLError):  # identity.py has checked them already
            context.load_cert_chain(profile.certificate_file, profile.key_file)
    with (
        socket.create_connection((profile.host, profile.port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=profile.host) as secure,
    ):
        # In TLS 1.3 the client is done before the server has looked at its certificate: an alert
        # comes with the first read. A server that is content sends its HTTP/2 settings.
        if not secure.recv(1):
            return _closed(profile, identity)
    return ServiceUnavailable(
        f"the service at {profile.target} takes connections but does not answer calls",
        hint="try again; if it stays, look at the service's log",
    )


def _refusal(error: ssl.SSLError, profile: Profile, identity: ClientIdentity) -> ModelKmsError:
    if expired := _expired(identity, profile):
        return expired
    said = f"{error.reason or ''} {error}".upper().replace(" ", "_")
    for alert, kind, told in _ALERTS:
        if alert in said:
            return kind(f"the service at {profile.target} refused TLS: {told}")
    return ServiceUnavailable(
        f"the TLS handshake with {profile.target} failed ({error.reason or 'no reason given'})",
        hint="check that endpoint is the service's mutual-TLS port",
    )


def _closed(profile: Profile, identity: ClientIdentity) -> ModelKmsError:
    """The service closed the connection without a word after the handshake."""
    return _expired(identity, profile) or CredentialInvalid(
        f"the service at {profile.target} closed the connection after it saw the client certificate"
    )


def _expired(identity: ClientIdentity, profile: Profile) -> ModelKmsError | None:
    if identity.certificate is None or not identity.expired():
        return None
    ended = identity.certificate.not_valid_after_utc.astimezone(UTC)
    return CredentialExpired(
        f"the client certificate {_name(profile.certificate_file)} expired at "
        f"{ended:%Y-%m-%d %H:%M:%S} UTC; it is {datetime.now(UTC):%Y-%m-%d %H:%M:%S} here"
    )


def _name(path: Path | None) -> str:
    return str(path) if path else "(none)"
