"""SPIFFE IDs, as the SPIFFE-ID and X509-SVID specifications define them. Never normalised."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ID_BYTES = 2048
"""SPIFFE-ID §2.3."""
MAX_TRUST_DOMAIN_BYTES = 255

# SPIFFE-ID §2.1: lower-case letters, digits, dots, dashes, underscores. No port, no user info.
_TRUST_DOMAIN = r"[a-z0-9._-]{1,255}"
# SPIFFE-ID §2.2: segments of letters, digits, dots, dashes, underscores; none empty, so there is
# no `//` and no trailing slash; `.` and `..` are refused. No percent-encoding exists.
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_ID = re.compile(rf"spiffe://({_TRUST_DOMAIN})((?:/{_SEGMENT})+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://{trust_domain}{path}`; `path` begins with a slash and is never just that."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


class NotASpiffeId(ValueError):
    """The text is not the SPIFFE ID of a workload."""


def parse_spiffe_id(text: str) -> SpiffeId:
    """Parse exactly what stands there.

    A bare trust domain is refused too: X509-SVID §2 demands a path of a workload's leaf.

    Raises:
        NotASpiffeId: it is none, or longer than 2048 bytes.
    """
    if len(text) > MAX_ID_BYTES:  # all permitted characters are one byte long
        raise NotASpiffeId
    match = _ID.fullmatch(text)
    if match is None:
        raise NotASpiffeId
    return SpiffeId(match[1], match[2])
