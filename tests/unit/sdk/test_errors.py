from __future__ import annotations

from typing import NamedTuple

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from modelkms import errors
from modelkms.cli import run
from modelkms.errors import ModelKmsError, all_errors
from modelkms.rpc_errors import by_reason, from_rpc_error, is_bare

from kms_service.domain.errors import ServiceError

FAMILIES = ModelKmsError.__subclasses__()
NEVER_ON_THE_WIRE = {
    "CONFIGURATION_INVALID",
    # Of `modelkms-server status`.
    "SERVICE_UNREACHABLE",
    # Of timers, which nobody calls.
    "AUDIT_CHAIN_FORKED",
    "SIGNING_KEY_MISCONFIGURED",
}
SHELL_CODES: dict[type[ModelKmsError], set[int]] = {
    run.CommandNotExecutable: {126},
    run.CommandNotFound: {127},
}


class Datum(NamedTuple):
    key: str
    value: bytes


class Failed(grpc.RpcError):
    """A failed call, as grpcio raises it."""

    def __init__(
        self, code: grpc.StatusCode, details: str = "", status: status_pb2.Status | None = None
    ) -> None:
        self._code, self._details, self._status = code, details, status

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[Datum, ...]:  # type: ignore[override]  # as grpcio's
        if self._status is None:
            return ()
        return (Datum("grpc-status-details-bin", self._status.SerializeToString()),)


def failed(
    code: grpc.StatusCode, reason: str, message: str = "it happened", retry_s: float | None = None
) -> Failed:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="modelkms", metadata={"k": "v"})
    details = [any_pb2.Any()]
    details[0].Pack(info)
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_s * 1e9))
        details.append(any_pb2.Any())
        details[1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number = code.value[0]
    return Failed(code, message, status_pb2.Status(code=number, message=message, details=details))


def all_service_errors(root: type[ServiceError] = ServiceError) -> set[str]:
    found = {root.reason} if "reason" in vars(root) else set()
    return found.union(*(all_service_errors(child) for child in root.__subclasses__()))


def test_every_reason_of_the_service_has_a_class_here() -> None:
    missing = all_service_errors() - by_reason().keys() - NEVER_ON_THE_WIRE
    assert not missing


@pytest.mark.parametrize("kind", list(all_errors()), ids=lambda kind: kind.__name__)
def test_every_error_tells_reason_hint_and_exit_code(kind: type[ModelKmsError]) -> None:
    error = kind("it happened", metadata={"size": "1"})
    assert error.exit_code in SHELL_CODES.get(kind, range(1, 9))
    assert error.reason == error.reason.upper()
    assert str(error) == "it happened"
    assert error.as_dict() == {
        "reason": error.reason,
        "message": "it happened",
        "hint": error.hint,
        "metadata": {"size": "1"},
        "exit_code": kind.exit_code,
    }
    assert kind.__doc__ or kind not in FAMILIES


def test_reasons_are_unique() -> None:
    declared = [kind for kind in all_errors() if kind not in FAMILIES and kind in vars_of(errors)]
    assert len({kind.default_reason for kind in declared}) == len(declared)


def vars_of(module: object) -> list[object]:
    return list(vars(module).values())


@pytest.mark.parametrize("kind", [kind for _, kind in sorted(by_reason().items())])
def test_a_reason_on_the_wire_becomes_its_class(kind: type[ModelKmsError]) -> None:
    told = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, kind.default_reason, retry_s=1.5))
    assert type(told) is kind
    assert (told.message, told.metadata, told.retry_after_s) == ("it happened", {"k": "v"}, 1.5)


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_an_unknown_reason_keeps_its_name_and_gets_a_class_by_code(code: grpc.StatusCode) -> None:
    told = from_rpc_error(failed(code, "BORN_TOMORROW"))
    assert told.reason == "BORN_TOMORROW"
    assert type(told) is type(from_rpc_error(Failed(code, "x")))


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNKNOWN, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.UNIMPLEMENTED, 2),
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.PERMISSION_DENIED, 3),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.UNAVAILABLE, 5),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 5),
        (grpc.StatusCode.DATA_LOSS, 6),
        (grpc.StatusCode.FAILED_PRECONDITION, 8),
        (grpc.StatusCode.ALREADY_EXISTS, 8),
        (grpc.StatusCode.ABORTED, 8),
    ],
)
def test_a_bare_status_has_the_exit_code_of_its_family(
    code: grpc.StatusCode, exit_code: int
) -> None:
    error = Failed(code, "gone")
    assert is_bare(error)
    assert from_rpc_error(error).exit_code == exit_code


def test_f24_control_characters_of_a_message_do_not_reach_the_terminal() -> None:
    told = from_rpc_error(failed(grpc.StatusCode.NOT_FOUND, "X", "a\x1b[31m\nb\u202ec"))
    assert told.message.isprintable()


def test_details_that_contradict_the_status_are_not_believed() -> None:
    error = failed(grpc.StatusCode.NOT_FOUND, "LEASE_REVOKED")
    error._code = grpc.StatusCode.INTERNAL
    assert type(from_rpc_error(error)) is errors.InternalError


def test_no_retry_advice_is_followed_for_longer_than_a_minute() -> None:
    told = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "VAULT_SEALED", retry_s=86400))
    assert told.retry_after_s == 60.0
