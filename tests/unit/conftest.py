"""Unit tests prove that they are offline: an internet socket opened in one is an error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_socket


@pytest.fixture(autouse=True)
def _offline() -> Iterator[None]:
    """Unix sockets stay: event loops and child processes are made of them."""
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()
