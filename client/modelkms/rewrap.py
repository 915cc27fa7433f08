"""Rewraps: moving a project's data keys under the newest version of its master key.

The service does it, and goes on whoever watches; what is here starts, stops and looks.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from modelkms_api.v1 import master_key_service_pb2 as pb

from modelkms import convert
from modelkms.session import ATTEMPTS, Session, may_retry
from modelkms.types import RewrapInfo

_WATCH_DEADLINE_S = 300.0
"""Of one stream; then another is opened."""


def start(session: Session, parent: str, keys_per_second: int) -> RewrapInfo:
    request = pb.RewrapDataKeysRequest(parent=parent, keys_per_second_limit=keys_per_second)
    # May be repeated: the second joins what the first started.
    return convert.rewrap(session.call(session.master_keys.RewrapDataKeys, request))


def latest(session: Session, parent: str) -> RewrapInfo:
    request = pb.GetRewrapRequest(name=f"{parent}/rewraps/latest")
    return convert.rewrap(session.call(session.master_keys.GetRewrap, request))


def pause(session: Session, name: str) -> RewrapInfo:
    request = pb.PauseRewrapRequest(name=name)
    return convert.rewrap(session.call(session.master_keys.PauseRewrap, request))


def watch(session: Session, name: str) -> Iterator[RewrapInfo]:
    """How it goes, about every second, until it is done. A stream that breaks is opened anew.

    Raises:
        ModelKmsError: it cannot be watched, after some attempts without an answer.
    """
    failed = 0
    while True:
        call = session.master_keys.WatchRewrap(
            pb.WatchRewrapRequest(name=name), timeout=_WATCH_DEADLINE_S
        )
        try:
            for answer in call:
                failed = 0
                seen = convert.rewrap(answer)
                yield seen
                if seen.done:
                    return
        except grpc.RpcError as error:
            told = session.explain(error)
            over = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and failed == 0
            if not over:
                failed += 1
                if failed == ATTEMPTS or not may_retry(error, told):
                    raise told from None
                session.pause(session.pause_s(failed, told))
        finally:
            call.cancel()
