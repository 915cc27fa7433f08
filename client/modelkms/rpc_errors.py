"""From a failed call to one of our errors: by `reason` where there is one, else by status code."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no py.typed
from grpc_status import rpc_status

from modelkms import errors
from modelkms.errors import ModelKmsError

_MESSAGE_LIMIT = 1000
_RETRY_LIMIT_S = 60.0

# What a status means when no reason of ours comes with it: grpcio itself, or a proxy, answered.
_BY_CODE: Mapping[grpc.StatusCode, type[ModelKmsError]] = {
    grpc.StatusCode.CANCELLED: errors.CallCancelled,
    grpc.StatusCode.INVALID_ARGUMENT: errors.UsageError,
    grpc.StatusCode.OUT_OF_RANGE: errors.UsageError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.UnavailableError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.WrongStateError,
    grpc.StatusCode.ABORTED: errors.WrongStateError,
    grpc.StatusCode.UNIMPLEMENTED: errors.OperationUnsupported,
    grpc.StatusCode.UNAVAILABLE: errors.ServiceUnavailable,
    grpc.StatusCode.DATA_LOSS: errors.CorruptError,
    grpc.StatusCode.UNAUTHENTICATED: errors.IdentityError,
}


def from_rpc_error(error: grpc.RpcError) -> ModelKmsError:
    """The error that `error` means, with the service's message, metadata and retry advice.

    A reason that this client does not know yet keeps its name and gets the family of its status
    code, so that a newer service is still understood.
    """
    code = error.code()
    kind = _BY_CODE.get(code, errors.InternalError)
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a raised call is both
    except (ValueError, DecodeError):
        status = None  # the details contradict the status: a proxy's doing; the code counts
    if status is None:
        reason = kind.default_reason if kind in _LEAVES else code.name
        return kind(_shown(error.details() or code.name), reason=reason)

    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    _find(status.details, info)
    declared = by_reason().get(info.reason, kind)
    told = declared(
        _shown(status.message or code.name),
        reason=_shown(info.reason) or code.name,
        metadata={_shown(key): _shown(value) for key, value in info.metadata.items()},
    )
    if _find(status.details, retry):
        told.retry_after_s = min(
            max(retry.retry_delay.ToTimedelta().total_seconds(), 0.0), _RETRY_LIMIT_S
        )
    return told


def is_bare(error: grpc.RpcError) -> bool:
    """Whether the status came from gRPC itself, not from the service's error table."""
    return not any(
        datum.key == "grpc-status-details-bin" for datum in error.trailing_metadata() or ()
    )


def by_reason() -> dict[str, type[ModelKmsError]]:
    """Every declared class that is not a family, by its reason."""
    return {kind.default_reason: kind for kind in _LEAVES}


# Families stand directly below the root, reasons below them; a class without a reason of its own
# is told apart inside its module only.
_LEAVES = tuple(
    kind
    for kind in errors.all_errors()
    if ModelKmsError not in kind.__bases__ and "default_reason" in vars(kind)
)


def _find(details: object, message: Message) -> bool:
    """Unpack the first detail of the message's type into it."""
    for detail in details:  # type: ignore[attr-defined]  # a repeated Any: no public type
        if detail.Is(message.DESCRIPTOR):
            return bool(detail.Unpack(message))
    return False


def _shown(text: str) -> str:
    """`text` bounded and without control characters: it ends in terminals and logs."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MESSAGE_LIMIT])
