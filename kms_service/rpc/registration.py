"""Binds a servicer's methods to grpc, by the service's descriptor.

A servicer has one method per RPC, in snake case, `(request, call) -> answer`. That every RPC of
the .proto has one is found out at start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from kms_service.rpc.pipeline import Pipeline

Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]
"""Method name to handler."""


def full_method(method: MethodDescriptor) -> str:
    """`/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def full_methods(services: Iterable[ServiceDescriptor]) -> Iterator[str]:
    """The full names of all methods of all services."""
    for service in services:
        for method in service.methods:
            yield full_method(method)


def handlers_of(
    service: ServiceDescriptor, servicer: object, pipeline: Pipeline, streams: ThreadPoolExecutor
) -> Handlers:
    """The wrapped handlers of one of our services.

    Args:
        service: descriptor.
        servicer: has a method for each RPC.
        pipeline: wraps them.
        streams: where streaming methods run, which hold a thread each.

    Raises:
        AttributeError: an RPC has no method.
    """
    return {
        method.name: _handler(method, servicer, pipeline, streams) for method in service.methods
    }


def _handler(
    method: MethodDescriptor, servicer: object, pipeline: Pipeline, streams: ThreadPoolExecutor
) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour: Callable[[Any, Any], Any] = getattr(servicer, _snake_case(method.name))
    codec: dict[str, Any] = {
        "request_deserializer": message_factory.GetMessageClass(method.input_type).FromString,
        "response_serializer": message_factory.GetMessageClass(
            method.output_type
        ).SerializeToString,
    }
    name = full_method(method)
    if method.server_streaming:
        many = _in_pool(pipeline.many_answers(name, behaviour), streams)
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(many, **codec)
        return grpc.unary_stream_rpc_method_handler(many, **codec)
    if method.client_streaming:
        one_to_many = _in_pool(pipeline.one_answer_to_many(name, behaviour), streams)
        return grpc.stream_unary_rpc_method_handler(one_to_many, **codec)
    return grpc.unary_unary_rpc_method_handler(pipeline.one_answer(name, behaviour), **codec)


def guarded_handlers(
    add_to_server: Callable[[Any, Any], None],
    servicer: object,
    pipeline: Pipeline,
    pool: ThreadPoolExecutor,
) -> tuple[str, Handlers]:
    """The handlers of a standard service, behind identity, in a pool of their own.

    Args:
        add_to_server: generated `add_…Servicer_to_server`.
        servicer: grpc's.

    Returns:
        The service's full name and its handlers.
    """
    recorder = _Recorder()
    add_to_server(servicer, recorder)
    handlers: Handlers = {}
    for name, handler in recorder.handlers.items():
        kind, make = next(
            (kind, make) for kind, make in _KINDS.items() if getattr(handler, kind) is not None
        )
        behaviour = getattr(handler, kind)
        guarded = _in_pool(pipeline.guarded(f"/{recorder.service}/{name}", behaviour), pool)
        # A health watch that waits for a change must not hold a thread meanwhile.
        for attribute in ("experimental_non_blocking",):
            if hasattr(behaviour, attribute):
                setattr(guarded, attribute, getattr(behaviour, attribute))
        handlers[name] = make(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
    return recorder.service, handlers


_KINDS: dict[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class _Recorder:
    """Takes what generated code hands a server."""

    def __init__(self) -> None:
        self.service = ""
        self.handlers: Handlers = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None: ...

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        self.service, self.handlers = service, handlers


def _in_pool(handle: Callable[..., Any], pool: ThreadPoolExecutor) -> Callable[..., Any]:
    handle.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read by grpc._server
    return handle


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
