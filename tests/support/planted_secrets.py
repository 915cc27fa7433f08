"""The secrets that tests make or meet, and what was written while they ran.

One registry a process. `plant` remembers a secret, `written` what left a process by other ways than
a file below pytest's temporary folder. `tests/support/secret_scan.py` fills most of it by itself,
and at the end looks for the one in the other.
"""

from __future__ import annotations

import re
from itertools import pairwise

DATA_KEY = "data key"
PRIVATE_KEY = "private key"
TOKEN = "token"
CREDENTIAL = "credential"
PLAINTEXT = "plaintext of a model"

_SHORTEST_BYTES = 16
_FEWEST_DIFFERENT = 9
"""Of the bytes of a secret, and of the steps between them: fewer are a test's `b"k" * 32` or
`bytes(range(32))`, found everywhere."""
_PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s(.*?)-----END", re.DOTALL)

planted: dict[bytes, str] = {}
"""Secret to its kind."""
outputs: list[tuple[str, bytes]] = []
"""Where it was written to, and what."""


def plant(kind: str, secret: bytes | str) -> None:
    """Remember a secret. What is too short or too regular to be one is not looked for."""
    value = secret.encode() if isinstance(secret, str) else bytes(secret)
    steps = {(after - before) % 256 for before, after in pairwise(value)}
    different = min(len(set(value)), len(steps))
    if len(value) >= _SHORTEST_BYTES and different >= _FEWEST_DIFFERENT:
        planted.setdefault(value, kind)


def plant_private_keys(pem: bytes) -> None:
    """Those in a PEM file, each line for itself: where it is wrapped is no secret.

    Not the first line of PKCS #8, which says what kind of key it is: the same for all of a kind.
    """
    for match in _PEM.finditer(pem):
        for line in match[1].split()[1:]:
            plant(PRIVATE_KEY, line)


def plant_token(token: str) -> None:
    """A JWT, by its signature: nobody can use it without, and what it claims may be told."""
    plant(TOKEN, token.rpartition(".")[2])


def written(where: str, content: bytes | str | None) -> None:
    """Remember what left a process; `where` names it in a report."""
    if content:
        outputs.append(
            (
                where,
                content.encode(errors="backslashreplace") if isinstance(content, str) else content,
            )
        )
