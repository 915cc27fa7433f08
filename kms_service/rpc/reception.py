"""A call takes a thread once its request is whole, not before (F30).

grpc's server hands a call to its pool as soon as the headers are there, and lets a thread of the
pool wait for the message. Whoever sends headers and nothing else holds that thread until the
connection ends, without having shown any credential on the token port: two such connections, and
no key is issued for half an hour. Here the message is awaited by grpc's own event loop; the pool
sees the call when it is there.

grpc has no public way to ask for that: this reads the arguments that grpc 1.85 hands to its pool.
Where another version hands over something else, calls go the old way, and the tests of F30 fail.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from grpc import _server as grpc_server
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled

REQUEST_WITHIN_S = 10.0
"""Between the headers and the end of the request, its 1 MiB included."""
_MOST_WAITING = 20_000
"""Calls whose request is awaited, each some 10 KiB. Beyond, those that wait longest are ended:
requests of ours come with their headers."""
_NO_FLAGS = 0

Start = Callable[[Callable[[], object]], None]
"""Takes a call whose request is there, with what gives the request."""


class Reception:
    """The calls whose request is awaited. Safe to use from many threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._waiting: OrderedDict[int, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def receive(self, arguments: tuple[Any, ...], start: Start) -> bool:
        """Await the request of the call that grpc describes by `arguments`, then `start` it; a
        call whose request does not come is ended, and never started. False: it is no call with one
        request, or not of this grpc; the caller starts it itself.
        """
        if not _is_awaited(arguments):
            return False
        _, event, state, _, _, deserialize, _ = arguments
        self._end_late(room=1)
        received = grpc_server._receive_message(state, event.call, deserialize)

        def on_message(message: Any) -> object:
            with self._lock:
                self._waiting.pop(id(state), None)
            finished = received(message)
            with state.condition:
                there, closed = state.request is not None, state.client is grpc_server._CLOSED
            if there:
                start(lambda: _take(state))
            elif closed:
                _end(event.call, cygrpc.StatusCode.unimplemented, "requires exactly one request")
            return finished

        with state.condition:
            operations = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
            event.call.start_server_batch(operations, on_message)
            state.due.add(grpc_server._RECEIVE_MESSAGE_TOKEN)
        with self._lock:
            self._waiting[id(state)] = (self._monotonic() + REQUEST_WITHIN_S, event.call)
        return True

    def _end_late(self, room: int) -> None:
        """Looked for when another call comes: until then they are in nobody's way."""
        late = []
        with self._lock:
            now = self._monotonic()
            while self._waiting:
                key, (due, call) = next(iter(self._waiting.items()))
                if due > now and len(self._waiting) + room <= _MOST_WAITING:
                    break
                del self._waiting[key]
                late.append(call)
        for call in late:
            _end(call, cygrpc.StatusCode.deadline_exceeded, "the request did not come")


def end_overloaded(arguments: tuple[Any, ...]) -> bool:
    """End the call that grpc describes by `arguments`, without a thread; False: it is none."""
    call = getattr(arguments[1], "call", None) if len(arguments) > 1 else None
    if call is None:
        return False
    _end(call, cygrpc.StatusCode.resource_exhausted, "the service is overloaded")
    return True


def _end(call: Any, code: int, details: str) -> None:
    call.cancel(code, details)


def _is_awaited(arguments: tuple[Any, ...]) -> bool:
    """Whether these are `(in_pool, event, state, behaviour, request, deserialize, serialize)` of a
    method with one request, which `request` would wait for."""
    return (
        len(arguments) == 7
        and getattr(arguments[4], "__name__", "") == "unary_request"
        and all(hasattr(arguments[2], name) for name in ("condition", "due", "request", "client"))
        and all(
            hasattr(grpc_server, name)
            for name in ("_receive_message", "_RECEIVE_MESSAGE_TOKEN", "_CLOSED")
        )
    )


def _take(state: Any) -> object:
    """The request; None if the caller went away meanwhile, and nothing is to be done."""
    with state.condition:
        request, state.request = state.request, None
        return request if grpc_server._is_rpc_state_active(state) else None
