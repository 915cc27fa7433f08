"""This client: its certificate and key, or its token; and how it verifies the service."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from modelkms.errors import (
    AnswerInvalid,
    CredentialInvalid,
    CredentialMissing,
    ProfileInvalid,
    SpiffeIdInvalid,
)
from modelkms.profile import Profile
from modelkms.secret import SecretBytes
from modelkms.tokens import BearerTokens
from modelkms.types import Identity

OIDC = "oidc:"


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The files of a profile, read and checked against each other.

    Attributes:
        ca: PEM bundle that the service's certificate is verified against.
        certificate_chain: PEM, this client's certificate first.
        private_key: PEM, unencrypted.
        certificate: the first of the chain.
        tokens: where bearer tokens come from; None: there are none.
        own_instance: what this process calls itself where no key says who it is.

    Chain, key and certificate are None together, for a client that has tokens only.
    """

    ca: bytes
    certificate_chain: bytes | None
    private_key: SecretBytes | None
    certificate: x509.Certificate | None
    tokens: BearerTokens | None = None
    own_instance: str = field(default_factory=lambda: secrets.token_hex(32))

    @classmethod
    def load(cls, profile: Profile) -> ClientIdentity:
        """
        Raises:
            CredentialMissing: the profile names no certificate or no key, and no token.
            CredentialInvalid: a file cannot be read or parsed, or key and certificate differ.
            ProfileInvalid: the CA file cannot be read or holds no certificate.
        """
        try:
            ca = profile.ca_file.read_bytes()
            x509.load_pem_x509_certificates(ca)
        except (OSError, ValueError) as error:
            raise ProfileInvalid(
                f"the CA file {profile.ca_file} cannot be used: {_why(error)}",
                hint=f"set ca_file in {profile.described}",
            ) from error
        tokens = BearerTokens.of(profile)
        if tokens is not None and profile.certificate_file is None and profile.key_file is None:
            return cls(ca, None, None, None, tokens)
        if profile.certificate_file is None or profile.key_file is None:
            missing = "key_file" if profile.certificate_file else "certificate_file"
            raise CredentialMissing(
                f"the profile has no {missing}, and the service wants a certificate for mutual "
                "TLS, or a token",
                hint=f"set certificate_file and key_file, or token_file, in {profile.described}",
            )
        chain = _read(profile.certificate_file, "certificate")
        key = SecretBytes(_read(profile.key_file, "key"))
        certificate = _parse(chain, key, profile)
        return cls(ca, chain, key, certificate, tokens)

    @property
    def spiffe_ids(self) -> list[str]:
        """URI subject alternative names, as the certificate has them. The service takes one."""
        if self.certificate is None:
            return []
        try:
            names = self.certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
        except x509.ExtensionNotFound:
            return []
        return names.get_values_for_type(x509.UniformResourceIdentifier)

    @property
    def principal(self) -> str:
        """The SPIFFE ID that the service knows this client by; of a token, its issuer and subject
        (the service has a name of its own for the issuer: see `principal_as_told`).

        Raises:
            SpiffeIdInvalid: the certificate has not exactly one.
            CredentialMissing, CredentialInvalid: there is no token.
        """
        if self.certificate is None:
            assert self.tokens is not None
            token = self.tokens.current()
            return f"{OIDC}{token.issuer}:{token.subject}"
        ids = self.spiffe_ids
        if len(ids) != 1 or not ids[0].startswith("spiffe://"):
            raise SpiffeIdInvalid(f"the client certificate carries {len(ids)} URI names, not one")
        return ids[0]

    def principal_as_told(self, told: str) -> str:
        """What a key answer is bound to: our own principal, whatever the service says; of a token
        what it says, if the subject is ours.

        Raises:
            AnswerInvalid: the service takes us for somebody else.
        """
        if self.certificate is not None:
            return self.principal
        assert self.tokens is not None
        subject = self.tokens.current().subject
        name = told.removeprefix(OIDC).removesuffix(f":{subject}")
        if told != f"{OIDC}{name}:{subject}" or ":" in name:
            raise AnswerInvalid("the service answered to another identity than this token's")
        return told

    @property
    def instance(self) -> str:
        """SHA-256 of the TLS key's SPKI, 64 hexadecimal digits; without one, our own word."""
        if self.certificate is None:
            return self.own_instance
        spki = self.certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(spki).hexdigest()

    def expired(self, now: datetime | None = None) -> bool:
        """Whether the certificate is over."""
        if self.certificate is None:
            return False
        return (now or datetime.now(UTC)) > self.certificate.not_valid_after_utc

    def described(self, profile: Profile, refusal: str) -> Identity:
        """For `whoami`. `refusal` is the reason why the service refused it; empty: accepted."""
        if self.certificate is None:
            return self._token_described(profile, refusal)
        ids = self.spiffe_ids
        return Identity(
            spiffe_id=ids[0] if len(ids) == 1 else "",
            instance=self.instance,
            not_before=self.certificate.not_valid_before_utc,
            not_after=self.certificate.not_valid_after_utc,
            issuer=self.certificate.issuer.rfc4514_string(),
            endpoint=profile.target,
            ca_file=str(profile.ca_file),
            accepted=not refusal,
            refusal=refusal,
        )

    def _token_described(self, profile: Profile, refusal: str) -> Identity:
        assert self.tokens is not None
        token = self.tokens.current()
        return Identity(
            spiffe_id="",
            instance=self.instance,
            not_before=None,
            not_after=token.expires,
            issuer=token.issuer,
            endpoint=profile.target,
            ca_file=str(profile.ca_file),
            accepted=not refusal,
            refusal=refusal,
            subject=token.subject,
        )


def signature(profile: Profile) -> tuple[tuple[int, int, int], ...] | None:
    """Changes when CA, certificate or key file do; None: one cannot be looked at."""
    files = (profile.ca_file, profile.certificate_file, profile.key_file)
    try:
        stats = [file.stat() for file in files if file is not None]
    except OSError:
        return None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CredentialMissing(f"the client {what} {path} does not exist") from error
    except OSError as error:
        raise CredentialInvalid(
            f"the client {what} {path} cannot be read: {_why(error)}"
        ) from error


def _parse(chain: bytes, key: SecretBytes, profile: Profile) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        public_key = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    except ValueError as error:
        raise CredentialInvalid(
            f"the client certificate {profile.certificate_file} is not a PEM certificate"
        ) from error
    try:
        own = load_pem_private_key(key.reveal(), password=None).public_key()
    except (ValueError, TypeError) as error:
        raise CredentialInvalid(
            f"the client key {profile.key_file} is not an unencrypted PEM key"
        ) from error
    if own.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key:
        raise CredentialInvalid(
            f"the client key {profile.key_file} does not belong to the certificate "
            f"{profile.certificate_file}"
        )
    return certificate


def _why(error: Exception) -> str:
    """The system's words for an I/O error; nothing of a parser's, which may quote the file."""
    return (error.strerror or "unreadable") if isinstance(error, OSError) else "not PEM"
