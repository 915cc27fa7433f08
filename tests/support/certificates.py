"""Certificates for tests, right ones and every kind of wrong one."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support import planted_secrets

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and the CA that a peer needs to verify the other side."""

    certificate: bytes
    key: bytes
    ca: bytes

    @property
    def instance(self) -> str:
        """SHA-256 of the SPKI, as the service tells it."""
        digest = hashes.Hash(hashes.SHA256())
        public_key = x509.load_pem_x509_certificate(self.certificate).public_key()
        digest.update(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return digest.finalize().hex()

    def write(self, folder: Path) -> Self:
        """`certificate.pem`, `key.pem`, `ca.pem`, each replaced atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("certificate.pem", self.certificate),
            ("key.pem", self.key),
            ("ca.pem", self.ca),
        ):
            temporary = folder / f".{name}"
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        return self

    def channel(self, port: int, **options: int) -> grpc.Channel:
        """A channel of this identity to the service on this machine."""
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)
        # Without this, channels of one process to one address share a connection.
        own = (("grpc.use_local_subchannel_pool", 1), *options.items())
        return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=own)


class TestAuthority:
    """A CA of one test: ECDSA P-256, in memory."""

    __test__ = False

    def __init__(self, trust_domain: str = "test.example", name: str = "test CA") -> None:
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(Encoding.PEM)

    def server(
        self,
        key: PrivateKey | None = None,
        *,
        starts_in: timedelta = timedelta(hours=-1),
        lifetime: timedelta = timedelta(hours=1),
    ) -> Issued:
        """For `localhost` and 127.0.0.1; ECDSA unless another key is given."""
        names = (
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        )
        return self.issue(
            names, key=key, usages=(SERVER_AUTH,), starts_in=starts_in, lifetime=lifetime
        )

    def client(self, path: str, *, lifetime: timedelta = timedelta(hours=1)) -> Issued:
        """`spiffe://{trust domain}/{path}`, as a mesh would issue it."""
        return self.issue(uris(f"spiffe://{self.trust_domain}/{path}"), lifetime=lifetime)

    def issue(
        self,
        names: Sequence[x509.GeneralName],
        *,
        key: PrivateKey | None = None,
        usages: Sequence[x509.ObjectIdentifier] | None = (CLIENT_AUTH,),
        starts_in: timedelta = timedelta(hours=-1),
        lifetime: timedelta = timedelta(hours=1),
        ca: bool | None = False,
        key_usage: x509.KeyUsage | None = None,
        common_name: str = "leaf",
    ) -> Issued:
        """Anything. `lifetime` counts from now; `usages` and `ca` None leave the extension out."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name(common_name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now + starts_in, now + lifetime - timedelta(seconds=1)))
            .not_valid_after(now + lifetime)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if ca is not None:
            constraints = x509.BasicConstraints(ca=ca, path_length=None)
            builder = builder.add_extension(constraints, critical=True)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        planted_secrets.plant_private_keys(key_pem)
        return Issued(certificate.public_bytes(Encoding.PEM), key_pem, self.pem)


def uris(*values: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(value) for value in values]


def key_usage(
    *, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
