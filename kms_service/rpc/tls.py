"""The server's certificate, key and client CA: checked before use, reloaded when the files change.

grpc asks before each handshake. What is there then but cannot be used (torn, mismatched, empty)
changes nothing: the last good configuration stays, and a metric tells (F10). There is no state in
which clients of the mTLS port are not verified.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from kms_service.domain.errors import ConfigurationError
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import Metrics

_log = get_logger(__name__)

_Signature = tuple[tuple[int, int, int], ...]
"""Inode, time of change (ns) and size of each file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    certificate_file: Path
    key_file: Path
    client_ca_file: Path

    def signature(self) -> _Signature | None:
        """Changes whenever a file is replaced or rewritten; None: one cannot be looked at."""
        try:
            stats = [path.stat() for path in self._paths()]
        except OSError:
            return None
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)

    def _paths(self) -> tuple[Path, Path, Path]:
        return self.certificate_file, self.key_file, self.client_ca_file


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Contents of the files, checked to fit together."""

    certificate_chain: bytes
    key: bytes
    client_ca: bytes
    issued: datetime
    expires: datetime

    def __repr__(self) -> str:
        return f"TlsMaterial(expires={self.expires.isoformat()})"

    def configuration(
        self, *, ask_for_certificate: bool = True
    ) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate_chain)], self.client_ca if ask_for_certificate else None
        )


def load_tls_material(files: TlsFiles) -> TlsMaterial:
    """Read and check the three files.

    Raises:
        ConfigurationError: naming the field and what to do.
    """
    chain = _read(files.certificate_file, "server.certificate_file")
    key = _read(files.key_file, "server.key_file")
    client_ca = _read(files.client_ca_file, "server.client_ca_file")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigurationError(
            "server.certificate_file: holds no PEM certificate; give the chain, leaf first"
        ) from error
    try:
        private_key = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:  # TypeError: encrypted
        raise ConfigurationError(
            "server.key_file: holds no unencrypted PEM private key; give the certificate's key"
        ) from error
    # With any other kind a TLS 1.2 suite could fit (rpc/tls_environment.py).
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(
            "server.key_file: the key is not ECDSA; make one with "
            "`openssl ecparam -name prime256v1 -genkey` and have it certified"
        )
    if _spki(private_key.public_key()) != _spki(leaf.public_key()):
        raise ConfigurationError(
            "server.key_file: does not belong to server.certificate_file; give the matching pair"
        )
    try:
        roots = x509.load_pem_x509_certificates(client_ca)
        usable = bool(roots) and all(_is_authority(root) for root in roots)
    except ValueError as error:
        raise ConfigurationError(
            "server.client_ca_file: holds no PEM certificate; give the CAs of your clients"
        ) from error
    if not usable:
        raise ConfigurationError(
            "server.client_ca_file: holds a certificate that is no CA; give the CAs of your clients"
        )
    return TlsMaterial(chain, key, client_ca, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


class ReloadingCredentials:
    """Server credentials that follow their files. Safe to use from grpc's threads.

    Args:
        ask_for_certificate: whether clients must have one; else (the token port) it is not even
            asked for.

    Raises:
        ConfigurationError: the files cannot be used at start.
    """

    def __init__(
        self, files: TlsFiles, metrics: Metrics, *, ask_for_certificate: bool = True
    ) -> None:
        self._ask = ask_for_certificate
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        # Before the read: a change during it is then seen as one.
        self._seen = files.signature()
        material = load_tls_material(files)
        self._in_force(material)
        self.grpc = grpc.dynamic_ssl_server_credentials(
            material.configuration(ask_for_certificate=self._ask),
            self._changed,  # type: ignore[arg-type]  # the stub forgot that None means no change
            require_client_authentication=self._ask,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by grpc before each handshake; None: go on with what you have."""
        with self._lock:
            signature = self._files.signature()
            if signature == self._seen:
                return None
            try:
                material = load_tls_material(self._files)
                configuration = material.configuration(ask_for_certificate=self._ask)
            except Exception as error:
                # Whatever it is, a handshake must go on with the last good configuration.
                self._refused(error, signature)
                return None
            self._seen = signature
            self._in_force(material)
            self._metrics.tls_reloads.labels(result="loaded").inc()
            _log.info("tls_reloaded", expires=material.expires.isoformat())
            return configuration

    def _refused(self, error: Exception, signature: _Signature | None) -> None:
        self._metrics.tls_last_reload_ok.set(0)
        self._metrics.tls_reloads.labels(result="refused").inc()
        what = error.message if isinstance(error, ConfigurationError) else type(error).__name__
        _log.error("tls_reload_refused", error=what)
        # Not tried again until a file changes again; a file that is missing is tried each time.
        self._seen = signature

    def _in_force(self, material: TlsMaterial) -> None:
        self._metrics.tls_last_reload_ok.set(1)
        self._metrics.certificate(material.issued, material.expires)


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{field}: cannot read {path}: {error.strerror or 'I/O error'}"
        ) from error


def _spki(key: object) -> bytes:
    public_bytes = getattr(key, "public_bytes")  # noqa: B009 - every public key type has it
    spki: bytes = public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return spki


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca
