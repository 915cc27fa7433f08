"""Sessions of key transport (docs/spec/key-transport-v1.md §4): one secret for one principal and
client key, for ten minutes and 2^20 answers; how many there are is bounded.

HPKE costs more than all the rest of an answer (ADR 0005), so it is done once a session.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from modelkms_api import key_transport as layout

from kms_service.domain.ports import ClientKey

MAX_ANSWERS = 2**20
"""key-transport-v1 KT-8. Random 96-bit nonces: two of 2^20 are equal with probability 2^-57."""
LIFETIME_S = 600.0
MAX_SESSIONS = 8192
"""About 4 KiB each."""
MAX_SESSIONS_OF_PRINCIPAL = 1024
"""A fleet under one SPIFFE ID may be this large before its sessions are made anew too early;
one principal that floods leaves seven eighths of the table to the others."""


@dataclass(slots=True)
class Session:
    """A secret, encrypted to its one client key.

    The cipher holds the only copy of the secret: nothing can wipe it under an answer that is being
    made, and it goes when the last of them lets go.
    """

    principal: str
    session_id: bytes
    encrypted_secret: bytes
    cipher: AESGCM = field(repr=False)
    end_s: float
    answers: int = 0


_ClientKeyId = tuple[int, bytes]
"""Suite and public key."""


class SessionTable:
    """The sessions of this process. Safe to use from several threads.

    In order of their beginning, so that the first is always the next to end: what is over the
    bounds goes from the front. A client whose session went early gets another one; it notices
    nothing, since each answer carries its session whole.

    Args:
        monotonic: seconds, going on while the machine sleeps.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        max_sessions: int = MAX_SESSIONS,
        max_of_principal: int = MAX_SESSIONS_OF_PRINCIPAL,
        max_answers: int = MAX_ANSWERS,
        looked_up: Callable[[bool], None] = lambda _found: None,
    ) -> None:
        self._monotonic = monotonic
        self._max_sessions = max_sessions
        self._max_of_principal = max_of_principal
        self._max_answers = max_answers
        self._looked_up = looked_up
        self._lock = threading.Lock()
        # Not plain dicts: those take ever longer to find their first entry as it is taken away.
        self._sessions: OrderedDict[_ClientKeyId, Session] = OrderedDict()
        self._of_principal: dict[str, OrderedDict[_ClientKeyId, None]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def knows(self, client_key: ClientKey) -> bool:
        """Whether a session was begun for this public key: it was checked then."""
        return (client_key.suite, client_key.public_key) in self._sessions

    def for_one_answer(
        self,
        principal: str,
        client_key: ClientKey,
        encrypt_secret: Callable[[bytes, bytearray], bytes],
    ) -> Session:
        """The session of this principal and client key, with one more answer counted.

        Args:
            encrypt_secret: (session id, secret) → the secret encrypted to the client key. Called
                where there is no session to go on with; not under the lock, so that two first
                requests at once may each begin one: the later stays.

        Raises:
            what `encrypt_secret` raises.
        """
        key = (client_key.suite, client_key.public_key)
        with self._lock:
            session = self._sessions.get(key)
            goes_on = session is not None and self._may_answer(session, principal)
            if session is not None and goes_on:
                session.answers += 1
        self._looked_up(goes_on)
        if session is not None and goes_on:
            return session
        session = self._begin(principal, encrypt_secret)
        with self._lock:
            self._drop(key)
            self._make_room(principal)
            self._sessions[key] = session
            self._of_principal.setdefault(principal, OrderedDict())[key] = None
        return session

    def forget_ended(self) -> None:
        """Drop what has ended, whether or not anybody asks again. Called now and then."""
        with self._lock:
            self._drop_ended()

    def _may_answer(self, session: Session, principal: str) -> bool:
        # KT-8: never for another principal, even one that learned of the public key.
        return (
            session.principal == principal
            and session.answers < self._max_answers
            and self._monotonic() < session.end_s
        )

    def _begin(
        self, principal: str, encrypt_secret: Callable[[bytes, bytearray], bytes]
    ) -> Session:
        # KT-6. It is wiped here as far as we own it; the cipher has its copy.
        session_id = os.urandom(layout.SESSION_ID_BYTES)
        secret = bytearray(os.urandom(layout.SESSION_SECRET_BYTES))
        try:
            return Session(
                principal=principal,
                session_id=session_id,
                encrypted_secret=encrypt_secret(session_id, secret),
                cipher=AESGCM(secret),
                end_s=self._monotonic() + LIFETIME_S,
                answers=1,
            )
        finally:
            secret[:] = bytes(len(secret))

    # --- under the lock --------------------------------------------------------------------------

    def _make_room(self, principal: str) -> None:
        self._drop_ended()
        own = self._of_principal.get(principal)
        if own is not None and len(own) >= self._max_of_principal:
            self._drop(next(iter(own)))
        if len(self._sessions) >= self._max_sessions:
            self._drop(next(iter(self._sessions)))

    def _drop_ended(self) -> None:
        now = self._monotonic()
        while self._sessions:
            first = next(iter(self._sessions))
            if now < self._sessions[first].end_s:
                return
            self._drop(first)

    def _drop(self, key: _ClientKeyId) -> None:
        session = self._sessions.pop(key, None)
        if session is None:
            return
        own = self._of_principal[session.principal]
        del own[key]
        if not own:
            del self._of_principal[session.principal]
