"""An issuer's public keys: fetched, kept through an outage, fetched anew when it rotates them.

What a token says (`jku`, `jwk`, `x5u`) is never followed: keys come from the configured place only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from kms_service.domain.errors import IdentityProviderUnavailable

_MAX_DOCUMENT_BYTES = 1 << 20
_MAX_KEYS = 256
_DISCOVERY = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an issuer's keys come from.

    Attributes:
        issuer: its `iss`, an https URL.
        jwks_url: of its keys; None: its discovery document tells.
        jwks_file: instead: a file with them.
        ca_file: PEM bundle to verify it with; None: the system's.
        bearer_token_file: shown to it (Kubernetes may ask for one).
        timeout_s: of one request.
    """

    issuer: str
    jwks_url: str | None = None
    jwks_file: Path | None = None
    ca_file: Path | None = None
    bearer_token_file: Path | None = None
    timeout_s: float = 3.0


class FetchFailed(Exception):
    """The keys could not be fetched, or are none; the message names no secret."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys by id (`kid`; empty for one without), and when they were fetched.

    `epoch` counts changes: what was verified under another one is verified anew.
    """

    keys: Mapping[str, tuple[PyJWK, ...]]
    fetched_s: float
    epoch: int
    document: str = ""


class KeyCache:
    """The newest keys that could be had. Safe to use from many threads.

    Args:
        fetch: gives the JWKS document's text; raises FetchFailed.
        elapsed: seconds that never go back, and count while the machine sleeps.
        refresh_s: how old keys may be before they are fetched again.
        max_age_s: for how long keys serve while they cannot be fetched.
        cool_down_s: between two fetches that unknown key ids cause.
    """

    def __init__(
        self,
        fetch: Callable[[], str],
        elapsed: Callable[[], float],
        *,
        refresh_s: float = 300.0,
        max_age_s: float = 86_400.0,
        cool_down_s: float = 10.0,
    ) -> None:
        self._fetch = fetch
        self._elapsed = elapsed
        self._refresh_s, self._max_age_s, self._cool_down_s = refresh_s, max_age_s, cool_down_s
        self._fetching = threading.Lock()
        self._tried_s: float | None = None
        self._set: KeySet | None = None

    def current(self) -> KeySet:
        """The keys that serve now.

        Raises:
            IdentityProviderUnavailable: none were ever had, or the last are too old.
        """
        found = self._set
        if found is None:
            self._fetch_unless_just_tried()
            found = self._set
        if found is None or self._elapsed() - found.fetched_s > self._max_age_s:
            raise IdentityProviderUnavailable
        return found

    def find(self, kid: str) -> tuple[KeySet, tuple[PyJWK, ...]]:
        """The keys of this id; fetched anew, once a cool-down, if there is none.

        Raises:
            IdentityProviderUnavailable: none were ever had, the last are too old, or it is being
                found out whether there is a new one.
        """
        known = self.current()
        if kid not in known.keys:
            self._fetch_unless_just_tried()
            known = self.current()
        return known, known.keys.get(kid, ())

    def refresh_if_old(self) -> bool:
        """Fetch again if it is time; whether the keys are as new as they should be. Does not
        raise: the old ones serve."""
        found = self._set
        if found is None or self._elapsed() - found.fetched_s >= self._refresh_s:
            with self._fetching:
                if self._cooled_down():
                    self._fetch_now()
        found = self._set
        return found is not None and self._elapsed() - found.fetched_s < 2 * self._refresh_s

    def _fetch_unless_just_tried(self) -> None:
        """A flood of unknown ids costs the issuer one request a cool-down."""
        if not self._fetching.acquire(blocking=False):
            # Another call is asking: its answer is not known yet, so nothing can be said.
            raise IdentityProviderUnavailable
        try:
            if self._cooled_down():
                self._fetch_now()
        finally:
            self._fetching.release()

    def _cooled_down(self) -> bool:
        return self._tried_s is None or self._elapsed() - self._tried_s >= self._cool_down_s

    def _fetch_now(self) -> None:
        self._tried_s = self._elapsed()
        before = self._set
        try:
            document = self._fetch()
            same = before is not None and before.document == document
            keys = before.keys if before is not None and same else parse_keys(document)
        except FetchFailed:
            return
        epoch = before.epoch + (not same) if before is not None else 1
        self._set = KeySet(keys, self._elapsed(), epoch, document)


def parse_keys(document: str) -> dict[str, tuple[PyJWK, ...]]:
    """The signature keys of a JWKS; symmetric, private and foreign ones are left out.

    Raises:
        FetchFailed: it is no JWKS, or holds no usable key.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FetchFailed("not a JWKS document") from error
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise FetchFailed("not a JWKS document")
    found: dict[str, tuple[PyJWK, ...]] = {}
    for entry in entries:
        if (key := _public_key(entry)) is not None:
            kid = key.key_id or ""
            found[kid] = (*found.get(kid, ()), key)
    if not found:
        raise FetchFailed("no usable key")
    return found


def _public_key(entry: Any) -> PyJWK | None:
    # A symmetric key in a public document is no secret, so it proves nothing (F12).
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    if not isinstance(entry.get("kid", ""), str):
        return None
    try:
        return PyJWK(entry)
    except (PyJWTError, ValueError, TypeError):
        return None


def fetcher(source: KeySource) -> Callable[[], str]:
    """What fetches the keys of `source`."""
    return lambda: _read_file(source.jwks_file) if source.jwks_file else _fetch(source)


def _read_file(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FetchFailed("the JWKS file cannot be read") from error


def _fetch(source: KeySource) -> str:
    url = source.jwks_url
    with requests.Session() as session:
        session.trust_env = False  # no proxy and no netrc from the environment
        session.verify = str(source.ca_file) if source.ca_file else True
        if source.bearer_token_file is not None:
            token = _read_file(source.bearer_token_file).strip()
            session.headers["Authorization"] = f"Bearer {token}"
        if url is None:
            url = _discover(session, source)
        return _get(session, url, source.timeout_s)


def _discover(session: requests.Session, source: KeySource) -> str:
    """OpenID Connect Discovery §4.3: the document must be the issuer's own."""
    text = _get(session, source.issuer.rstrip("/") + _DISCOVERY, source.timeout_s)
    try:
        document = json.loads(text)
        issuer, url = document["issuer"], document["jwks_uri"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FetchFailed("not a discovery document") from error
    if issuer != source.issuer or not isinstance(url, str) or not url.startswith("https://"):
        raise FetchFailed("the discovery document is of another issuer, or its keys are not https")
    return url


def _get(session: requests.Session, url: str, timeout_s: float) -> str:
    try:
        with session.get(url, timeout=timeout_s, allow_redirects=False, stream=True) as answer:
            if answer.status_code != requests.codes.ok:
                raise FetchFailed(f"the identity provider answered {answer.status_code}")
            content = answer.raw.read(_MAX_DOCUMENT_BYTES + 1, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise FetchFailed("the identity provider cannot be reached") from error
    except Exception as error:  # urllib3's own, which requests lets through when streaming
        if isinstance(error, FetchFailed):
            raise
        raise FetchFailed("the identity provider's answer broke off") from error
    if len(content) > _MAX_DOCUMENT_BYTES:
        raise FetchFailed("the identity provider's answer is too long")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise FetchFailed("the identity provider's answer is not text") from error
