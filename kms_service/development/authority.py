"""The development CA: identities as a SPIFFE-issuing mesh would hand out. Never for production."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "dev.modelkms.local"
_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=90)


def write_private(path: Path, content: bytes | str) -> None:
    """Write a file that only its owner can read, atomically."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


class DevelopmentAuthority:
    """An ECDSA P-256 CA in a folder; made at first use, kept between runs."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "ca.pem"
        key_file = folder / "ca-key.pem"
        if not (self.ca_file.exists() and key_file.exists()):
            self._create(key_file)
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key_file} is not an ECDSA key")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())

    def issue_server(self, folder: Path) -> tuple[Path, Path]:
        """Certificate and key for `localhost` and 127.0.0.1; written to `folder`."""
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        return self._issue(folder, "modelkms-server", names, ExtendedKeyUsageOID.SERVER_AUTH)

    def issue_identity(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Certificate and key of `spiffe://dev.modelkms.local/{name}`; written to `folder`."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(name))]
        return self._issue(folder, name, names, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _create(self, key_file: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _common_name("ModelKMS development CA")
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        write_private(key_file, _pem(key))
        write_private(self.ca_file, certificate.public_bytes(serialization.Encoding.PEM))

    def _issue(
        self,
        folder: Path,
        common_name: str,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_common_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + _LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
        write_private(key_file, _pem(key))
        write_private(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        return certificate_file, key_file


def spiffe_id(name: str) -> str:
    """The SPIFFE ID of a development identity."""
    return f"spiffe://{TRUST_DOMAIN}/{name}"


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
