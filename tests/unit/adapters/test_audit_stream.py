"""The copy of the audit log that may lag."""

from __future__ import annotations

import io
import threading

from kms_service.adapters.audit_stream import AuditStream


class SlowStream(io.BytesIO):
    """Takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.asked = threading.Event()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.asked.set()
        assert self.open.wait(30)
        return super().write(data)


def test_lines_come_through_in_order() -> None:
    copy = io.BytesIO()
    dropped: list[int] = []
    stream = AuditStream(copy, dropped.append)
    for number in range(100):
        stream.tell([b"%d\n" % number, b"x\n"])
    stream.close()
    assert copy.getvalue() == b"".join(b"%d\nx\n" % number for number in range(100))
    assert dropped == []


def test_nobody_waits_for_a_slow_stream_and_what_is_left_out_is_counted() -> None:
    copy = SlowStream()
    dropped: list[int] = []
    stream = AuditStream(copy, dropped.append, capacity=3)
    stream.tell([b"0\n"])
    assert copy.asked.wait(30)
    for number in range(1, 6):
        stream.tell([b"%d\n" % number])
    assert dropped == [1, 1]
    copy.open.set()
    stream.close()
    assert copy.getvalue() == b"0\n1\n2\n3\n"


def test_a_stream_that_fails_is_tried_again() -> None:
    tried = threading.Event()

    class Broken(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if not tried.is_set():
                tried.set()
                raise BrokenPipeError
            return super().write(data)

    copy = Broken()
    dropped: list[int] = []
    stream = AuditStream(copy, dropped.append)
    stream.tell([b"lost\n"])
    assert tried.wait(30)
    stream.tell([b"kept\n"])
    stream.close()
    assert copy.getvalue() == b"kept\n"
    assert dropped == [1]
