"""Identities from tokens: OpenID Connect and Kubernetes service accounts, signed JWTs (RFC 7519).

The algorithm comes from the configuration and from the key, never from the token alone (RFC 8725).
A token is verified once; what can change meanwhile (time, the issuer's keys) is looked at again at
each call.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from kms_service.adapters.jwks import KeyCache
from kms_service.domain.errors import TokenInvalid
from kms_service.domain.identity import Claims, Principal, VerifiedToken
from kms_service.domain.ports import Clock

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""What may be allowed: signatures only, nothing symmetric, never `none`."""

_MAX_TOKEN_CHARACTERS = 8 * 1024
_MAX_SUBJECT_CHARACTERS = 1024
_MAX_CLAIMS = 256
_MAX_DEPTH = 8
_CACHED_TOKENS = 8192
_SKEW = timedelta(seconds=60)
"""How far an issuer's clock may be ahead of ours. None is granted at the end."""
_OWN_CLAIMS = frozenset({"iss", "sub", "exp", "nbf", "iat", "jti", "cnf"})
_KINDS = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519"}


@dataclass(frozen=True, slots=True)
class Issuer:
    """One whose tokens are taken.

    Attributes:
        name: ours for it; stands in principals' ids and groups.
        issuer: its `iss`, exactly.
        audiences: one of them must be the token's.
        algorithms: of `ALGORITHMS`.
        groups_claim: whose values are groups.
        keys: its public keys.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    groups_claim: str
    keys: KeyCache


@dataclass(frozen=True, slots=True)
class _Known:
    token: VerifiedToken
    issuer: Issuer
    epoch: int


class TokenVerifier:
    """Implements `domain.ports.TokenVerifier`. Safe to use from many threads.

    Args:
        clock: logical time, so that an expired token never revives.
        looked_up: told at each call whether the token was known.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        clock: Clock,
        looked_up: Callable[[bool], None] = lambda _found: None,
    ) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._clock = clock
        self._looked_up = looked_up
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def verify(self, token: str) -> VerifiedToken:
        """Who the token is of.

        Raises:
            TokenInvalid: it is not one of ours, not now, or not for us. Says no more (F16).
            IdentityProviderUnavailable: the issuer's keys cannot be had, so nothing is known.
        """
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise TokenInvalid
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
        # `current` also refuses keys that are too old, for known tokens as for new ones.
        fresh = known is not None and known.issuer.keys.current().epoch == known.epoch
        self._looked_up(fresh)
        if known is None or not fresh:
            known = self._verify(token)
            self._keep(digest, known)
        self._check_times(known.token)
        return known.token

    def refresh_keys(self) -> bool:
        """Fetch the keys whose time has come; whether all are as new as they should be."""
        current = [issuer.keys.refresh_if_old() for issuer in self._issuers.values()]
        return all(current)

    def _verify(self, token: str) -> _Known:
        # The claims are read before the signature is checked only to find out whose it claims
        # to be; they are read again from what was verified.
        header, unverified = _unverified(token)
        issuer = self._issuers.get(str(unverified.get("iss")))
        if issuer is None or "crit" in header:
            raise TokenInvalid
        algorithm, kid = header.get("alg"), header.get("kid", "")
        if algorithm not in issuer.algorithms or not isinstance(kid, str):
            raise TokenInvalid
        keys, candidates = issuer.keys.find(kid)
        if not kid and not candidates and len(keys.keys) == 1:
            candidates = next(iter(keys.keys.values()))
        for key in candidates:
            if _fits(key, algorithm):
                claims = _decoded(token, key, algorithm, issuer)
                return _Known(_read(claims, issuer), issuer, keys.epoch)
        raise TokenInvalid

    def _keep(self, digest: bytes, known: _Known) -> None:
        with self._lock:
            self._known[digest] = known
            self._known.move_to_end(digest)
            while len(self._known) > _CACHED_TOKENS:
                self._known.popitem(last=False)

    def _check_times(self, token: VerifiedToken) -> None:
        now = self._clock.now()
        if now >= token.expires or now < token.not_before - _SKEW:
            raise TokenInvalid


def _unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        whole = jwt.decode_complete(token, options={"verify_signature": False})
    except (PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise TokenInvalid from error
    return whole["header"], whole["payload"]


def _fits(key: PyJWK, algorithm: str) -> bool:
    """Whether a key is of the algorithm's kind, and was not made for another one."""
    described = key._jwk_data
    if described.get("alg", algorithm) != algorithm:
        return False
    if not algorithm.startswith(_KINDS[str(key.key_type)]):
        return False
    return described.get("crv") == _CURVES.get(algorithm)


def _decoded(token: str, key: PyJWK, algorithm: str, issuer: Issuer) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            # Under the algorithm asked for: PyJWK would take RS256 for any RSA key.
            PyJWK(key._jwk_data, algorithm).key,
            algorithms=[algorithm],
            audience=issuer.audiences,
            issuer=issuer.issuer,
            options={
                "require": ["exp", "sub", "iss", "aud"],
                "enforce_minimum_key_length": True,
                # By our clock, below.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise TokenInvalid from error


def _read(claims: Mapping[str, Any], issuer: Issuer) -> VerifiedToken:
    subject = claims["sub"]
    if not _is_plain(subject) or len(subject) > _MAX_SUBJECT_CHARACTERS:
        raise TokenInvalid
    expires = _time(claims["exp"])
    starts = max(_time(claims.get(name, 0)) for name in ("nbf", "iat"))
    thumbprint, by_certificate = _confirmation(claims.get("cnf"))
    groups = sorted({f"{issuer.name}:{group}" for group in _texts(claims.get(issuer.groups_claim))})
    principal = Principal(
        id=f"oidc:{issuer.name}:{subject}",
        trust_domain="",
        path="",
        instance=thumbprint,
        issuer=issuer.name,
        subject=subject,
        groups=tuple(groups),
        claims=_flattened(claims),
        instance_proven=False,
    )
    return VerifiedToken(principal, starts, expires, thumbprint if by_certificate else "")


def _time(value: object) -> datetime:
    """Seconds since 1970; whole or broken, never text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenInvalid
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise TokenInvalid from error


def _confirmation(cnf: object) -> tuple[str, bool]:
    """The thumbprint of the key that the token is bound to (RFC 7800, 8705, 9449), hexadecimal,
    and whether it is that of a certificate. Empty if it is bound to none.

    Raises:
        TokenInvalid: bound in a way we do not know, so that it cannot be honoured.
    """
    if cnf is None:
        return "", False
    for name in ("x5t#S256", "jkt"):
        if isinstance(cnf, dict) and isinstance(cnf.get(name), str):
            try:
                padded = cnf[name] + "=" * (-len(cnf[name]) % 4)
                thumbprint = base64.b64decode(padded, altchars=b"-_", validate=True)
            except (binascii.Error, ValueError) as error:
                raise TokenInvalid from error
            if len(thumbprint) == hashlib.sha256().digest_size:
                return thumbprint.hex(), name == "x5t#S256"
    raise TokenInvalid


def _flattened(claims: Mapping[str, Any]) -> Claims:
    """Each claim as a set of strings; nested names joined by `/`. Registered ones are left out:
    they are looked at elsewhere, and would make each token another request to policy."""
    found: dict[str, set[str]] = {}

    def add(name: str, value: object, depth: int) -> None:
        if depth > _MAX_DEPTH or len(found) > _MAX_CLAIMS:
            raise TokenInvalid
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}/{key}" if name else key, inner, depth + 1)
            return
        found.setdefault(name, set()).update(_texts(value))

    add("", {name: value for name, value in claims.items() if name not in _OWN_CLAIMS}, 0)
    return tuple(sorted((name, tuple(sorted(values))) for name, values in found.items()))


def _texts(value: object) -> Iterable[str]:
    """Of text, numbers and truth values, alone or in a list; others say nothing."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool):
            yield "true" if each else "false"
        elif isinstance(each, int | float):
            yield str(each)
        elif isinstance(each, str):
            yield each


def _is_plain(text: object) -> bool:
    """Non-empty, NFC, without control, format and unassigned characters: it becomes a name."""
    return (
        isinstance(text, str)
        and bool(text)
        and unicodedata.is_normalized("NFC", text)
        and not any(unicodedata.category(each)[0] in "CZ" for each in text if each != " ")
    )
