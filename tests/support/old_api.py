"""The API as it was published last, between a client and a server of this tree.

What passes is parsed by the published descriptors and written anew without what those do not know:
the server sees what an old client would send, the client what an old server would answer. Methods
that there were not are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.support.tools import REPOSITORY

PUBLISHED = REPOSITORY / "protos" / "published" / "modelkms_api.binpb"
Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


class PublishedApi:
    """Its messages by method.

    Attributes:
        used: methods that passed.
    """

    def __init__(self) -> None:
        pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(PUBLISHED.read_bytes())
        for file in files.file:
            pool.Add(file)
        self._messages = {
            f"/{file.package}.{service.name}/{method.name}": tuple(
                message_factory.GetMessageClass(pool.FindMessageTypeByName(name.lstrip(".")))
                for name in (method.input_type, method.output_type)
            )
            for file in files.file
            for service in file.service
            for method in service.method
        }
        self.used: set[str] = set()

    def __contains__(self, method: str) -> bool:
        return method in self._messages

    def request(self, method: str, data: bytes) -> bytes:
        self.used.add(method)
        return self._known(self._messages[method][0], data)

    def answer(self, method: str, data: bytes) -> bytes:
        return self._known(self._messages[method][1], data)

    @staticmethod
    def _known(kind: Any, data: bytes) -> bytes:
        message = kind.FromString(data)
        message.DiscardUnknownFields()
        known: bytes = message.SerializeToString()
        return known


class OldChannel(grpc.Channel):
    """A channel on which only the published API is spoken."""

    def __init__(self, channel: grpc.Channel, api: PublishedApi) -> None:
        self._channel = channel
        self._api = api

    def _through(self, kind: str, method: str, write: Serializer, read: Deserializer) -> Any:
        make = getattr(self._channel, kind)
        api = self._api
        if method not in api:  # what the server does not know, grpc answers
            return make(f"{method}OfLater", write, read)
        return make(
            method,
            lambda message: api.request(method, write(message)),
            lambda data: read(api.answer(method, data)),
        )

    def unary_unary(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._through("unary_unary", method, request_serializer, response_deserializer)

    def unary_stream(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._through("unary_stream", method, request_serializer, response_deserializer)

    def stream_unary(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._through("stream_unary", method, request_serializer, response_deserializer)

    def stream_stream(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._through("stream_stream", method, request_serializer, response_deserializer)

    def subscribe(self, *arguments: Any, **named: Any) -> None:
        self._channel.subscribe(*arguments, **named)

    def unsubscribe(self, callback: Any) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> OldChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
