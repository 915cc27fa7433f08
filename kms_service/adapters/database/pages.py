"""Page tokens (AIP-158): where the last page ended. Opaque to callers, no secret, no right."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from kms_service.domain.errors import InvalidField
from kms_service.domain.ports import Page

T = TypeVar("T")

_LARGEST = 2**63 - 1  # of what a database can compare with


def encode_token(*position: str | int) -> str:
    """A token for the position of the last item of a page."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_token(token: str, *kinds: type) -> Sequence[str | int] | None:
    """The position, its parts of these kinds; None for the first page.

    Raises:
        InvalidField: not a token of ours.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        position = None
    if not isinstance(position, list) or not _is_ours(position, kinds):
        raise InvalidField("page_token", "must be a next_page_token of this method, unchanged")
    return position


def _is_ours(position: Sequence[object], kinds: Sequence[type]) -> bool:
    return [type(part) for part in position] == list(kinds) and all(
        0 <= part <= _LARGEST for part in position if isinstance(part, int)
    )


def page_of(found: Sequence[T], page_size: int, token_of: Callable[[T], str]) -> Page[T]:
    """The page, from one row more than it holds: that row says whether there is a next one."""
    items = found[:page_size]
    return Page(items, token_of(items[-1]) if len(found) > page_size else "")
