"""The one table from domain errors to what crosses the wire.

A family decides the gRPC status code, a class its stable `reason`. Everything told to a caller is
in the error's own message and metadata; causes and unexpected exceptions stay inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs
from grpc_status import rpc_status

from kms_service.domain import errors

DOMAIN = "modelkms"
"""`google.rpc.ErrorInfo.domain` of every reason below."""
INTERNAL_REASON = "INTERNAL_ERROR"

_CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.Throttled: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Cancelled: grpc.StatusCode.DEADLINE_EXCEEDED,
    # A configuration error is found at start and by no call; if one is, it is our fault.
    errors.ConfigurationError: grpc.StatusCode.INTERNAL,
}


def status_code(error: type[errors.ServiceError]) -> grpc.StatusCode:
    """The code of an error class: its family's.

    Raises:
        LookupError: the class belongs to no family (a test walks all classes).
    """
    for family in error.__mro__:
        if family in _CODES:
            return _CODES[family]
    raise LookupError(error.__name__)


def to_grpc_status(error: errors.ServiceError) -> grpc.Status:
    """`google.rpc.Status` with ErrorInfo, and BadRequest or RetryInfo where they apply."""
    code = status_code(type(error))
    if code is grpc.StatusCode.INTERNAL:
        return internal_status("")
    return _grpc_status(code, error.message, error.reason, error.metadata, _further_details(error))


def internal_status(incident_id: str) -> grpc.Status:
    """INTERNAL with an id to ask for, and nothing else (F27)."""
    return _grpc_status(
        grpc.StatusCode.INTERNAL,
        "internal error; operations can look up the incident id",
        INTERNAL_REASON,
        {"incident_id": incident_id},
    )


def reasons() -> frozenset[str]:
    """Every reason there is: the closed set of the metric label `reason`."""
    return frozenset(
        {INTERNAL_REASON, *(cls.reason for cls in error_classes() if hasattr(cls, "reason"))}
    )


def error_classes(
    root: type[errors.ServiceError] = errors.ServiceError,
) -> Iterator[type[errors.ServiceError]]:
    """All subclasses of `root`, found by walking."""
    for cls in root.__subclasses__():
        yield cls
        yield from error_classes(cls)


def _further_details(error: errors.ServiceError) -> Iterator[Message]:
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description, reason=error.reason
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, errors.Throttled | errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _grpc_status(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: dict[str, str],
    further: Iterable[Message] = (),
) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    details = []
    for detail in (info, *further):
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)
    number: int = code.value[0]
    return rpc_status.to_status(status_pb2.Status(code=number, message=message, details=details))
