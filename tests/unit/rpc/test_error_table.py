"""The error table, over every error class there is."""

from __future__ import annotations

import inspect
import re

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs

from kms_service.domain import errors
from kms_service.rpc.error_table import (
    INTERNAL_REASON,
    error_classes,
    internal_status,
    reasons,
    status_code,
    to_grpc_status,
)

CLASSES = sorted(error_classes(), key=lambda cls: cls.__name__)
CONCRETE = [cls for cls in CLASSES if "reason" in vars(cls)]
FAMILIES = [cls for cls in CLASSES if not hasattr(cls, "reason")]


def make(cls: type[errors.ServiceError]) -> errors.ServiceError:
    """An instance; required arguments get words."""
    names = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    return cls(*(f"the-{name}" for name in names))


def unpack(status: grpc.Status) -> status_pb2.Status:
    (_, packed), *rest = status.trailing_metadata
    assert not rest
    assert isinstance(packed, bytes)
    return status_pb2.Status.FromString(packed)


def detail(status: status_pb2.Status, kind: type) -> object | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message  # type: ignore[no-any-return]  # untyped library
    return None


def test_there_are_classes() -> None:
    assert len(CONCRETE) > 30
    assert {cls.__name__ for cls in FAMILIES} == {
        "InvalidArgument", "Unauthenticated", "NotFound", "AlreadyExists", "WrongState",
        "Conflict", "Throttled", "Unavailable", "Corrupt", "Cancelled",
    }  # fmt: skip


def test_every_reason_belongs_to_one_class() -> None:
    told = [cls.reason for cls in CONCRETE]
    assert len(set(told)) == len(told)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,62}", reason) for reason in told)
    assert reasons() == {*told, INTERNAL_REASON}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_code(cls: type[errors.ServiceError]) -> None:
    assert status_code(cls) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert status_code(cls) is not grpc.StatusCode.PERMISSION_DENIED  # told as NOT_FOUND


@pytest.mark.parametrize("cls", CONCRETE)
def test_every_class_as_the_client_sees_it(cls: type[errors.ServiceError]) -> None:
    error = make(cls)
    status = to_grpc_status(error)
    rich = unpack(status)
    assert status.code is status_code(cls)
    assert (rich.code, rich.message) == (status.code.value[0], status.details)
    info = detail(rich, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.domain == "modelkms"
    if status.code is grpc.StatusCode.INTERNAL:
        assert info.reason == INTERNAL_REASON
        return
    assert info.reason == cls.reason
    assert dict(info.metadata) == error.metadata
    assert status.details == error.message
    retry = detail(rich, error_details_pb2.RetryInfo)
    assert (retry is not None) == issubclass(cls, errors.Throttled | errors.Unavailable)
    bad = detail(rich, error_details_pb2.BadRequest)
    assert (bad is not None) == issubclass(cls, errors.InvalidField)


def test_invalid_field_names_the_field() -> None:
    rich = unpack(to_grpc_status(errors.InvalidField("parent", "must be projects/{project}")))
    bad = detail(rich, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("parent", "must be projects/{project}")
    ]


def test_retry_info_has_the_class_s_delay() -> None:
    rich = unpack(to_grpc_status(errors.VaultUnavailable()))
    retry = detail(rich, error_details_pb2.RetryInfo)
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToTimedelta().total_seconds() == errors.VaultUnavailable.retry_after_s


def test_missing_and_denied_differ_in_the_decision_id_only() -> None:
    first = to_grpc_status(errors.ModelNotFoundOrDenied("1" * 32))
    second = to_grpc_status(errors.ModelNotFoundOrDenied("2" * 32))
    assert (first.code, first.details) == (second.code, second.details)
    packed = [unpack(status).SerializeToString() for status in (first, second)]
    assert packed[0].replace(b"1" * 32, b"2" * 32) == packed[1]


def test_f27_internal_says_nothing_but_the_incident() -> None:
    status = internal_status("ab" * 16)
    info = detail(unpack(status), error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == (INTERNAL_REASON, {"incident_id": "ab" * 16})


def test_an_error_without_family_is_found_out() -> None:
    with pytest.raises(LookupError):
        status_code(errors.ServiceError)
