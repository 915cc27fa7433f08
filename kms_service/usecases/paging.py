"""Pages (AIP-158) of which some items may be hidden from the one who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kms_service.domain.errors import InvalidField
from kms_service.domain.ports import Page

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

MAX_EXAMINED = 10_000
"""So many items are examined for one page; the page is then shorter, its token goes on."""


def check_page_size(page_size: int) -> int:
    """The page size meant: 0 is the default.

    Raises:
        InvalidField: not 0 to 1,000.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidField("page_size", f"must be 0 to {MAX_PAGE_SIZE}")
    return page_size or DEFAULT_PAGE_SIZE


def visible_page(
    fetch: Callable[[int, str], Page[T]],
    visible: Callable[[T], bool],
    page_size: int,
    page_token: str,
) -> Page[T]:
    """A page of visible items.

    Each fetch asks for as many as are still wanted. So a page is full only if all of its last
    fetch was visible, and its token, which may tell where that fetch ended, tells of nothing
    hidden.

    Raises:
        InvalidField: `page_token` is not one of ours.
    """
    items: list[T] = []
    examined = 0
    while True:
        fetched = fetch(page_size - len(items), page_token)
        examined += len(fetched.items)
        items += [item for item in fetched.items if visible(item)]
        page_token = fetched.next_page_token
        if not page_token or len(items) >= page_size or examined >= MAX_EXAMINED:
            return Page(items, page_token)
