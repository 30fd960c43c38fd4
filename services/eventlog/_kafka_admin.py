"""What Kafka's cluster is asked about topics: their ids, partitions and making; behind `KafkaLog`.

A topic's id (KIP-516) changes exactly when the topic is made anew, so it is the log's incarnation.
aiokafka's own metadata request is older than that field; the one here is version 12
(https://kafka.apache.org/protocol#The_Messages_Metadata).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)
from aiokafka.structs import OffsetAndMetadata

from schemas.topics import Topic
from services.errors import Broken, Unavailable

_RECORD_BYTES_MAX = 1 << 20
_SEGMENT_BYTES = 16 << 20
_COORDINATOR_SECONDS_MAX = 10
_COORDINATOR_MOVES = (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
)
"""The cluster's first group ever, or a broker that has just come or gone."""


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    """16 raw bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _TopicIdsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicIdsRequestV12(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TopicIdsResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIdsRequest(Request[_TopicIdsRequestV12]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_TopicIdsRequestV12]) -> _TopicIdsRequestV12:
        topics: list[Any] = [(bytes(16), name, {}) for name in self._names]
        return request_struct_class(topics, False, False, {})


@dataclass(frozen=True, slots=True)
class Described:
    """A topic that exists: the id of this life of it, and its partitions."""

    id: str
    partitions: int


async def describe(admin: AIOKafkaAdminClient, names: Sequence[str]) -> Mapping[str, Described]:
    """Those of the topics that exist. Raises Unavailable."""
    try:
        answer = await admin._send_request(_TopicIdsRequest(names))
    except KafkaError as error:
        raise Unavailable(f"Kafka does not describe its topics: {error!r}") from error
    except NotImplementedError as error:
        raise Broken(f"this Kafka is too old: {error}") from error
    found = {}
    for topic in answer.to_object()["topics"]:
        if topic["error_code"] == 0:
            topic_id = str(UUID(bytes=topic["topic_id"]))
            found[topic["topic"]] = Described(topic_id, len(topic["partitions"]))
    return found


async def committed(
    admin: AIOKafkaAdminClient, group: str
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """What the group has committed, with what was written beside it. Raises Unavailable."""
    try:
        async with asyncio.timeout(_COORDINATOR_SECONDS_MAX):
            while True:
                try:
                    return await _committed(admin, group)
                except _COORDINATOR_MOVES:
                    await asyncio.sleep(0.2)
    except (KafkaError, TimeoutError) as error:
        raise Unavailable(f"Kafka does not tell its offsets: {error!r}") from error


async def _committed(
    admin: AIOKafkaAdminClient, group: str
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """aiokafka's own question passes over the error of the whole answer, which then looks as if
    nothing were committed.
    """
    coordinator = await admin.find_coordinator(group)
    answer = await admin._send_request(OffsetFetchRequest(group, None), coordinator)
    found = {}
    codes = [getattr(answer, "error_code", 0)]
    for topic, partitions in answer.topics:
        for partition, offset, metadata, code in partitions:
            codes.append(code)
            if offset >= 0:
                found[TopicPartition(topic, partition)] = OffsetAndMetadata(offset, metadata)
    for code in filter(None, codes):
        raise for_code(code)(f"offsets of {group}")
    return found


async def create(admin: AIOKafkaAdminClient, topics: Mapping[str, tuple[Topic, int]]) -> None:
    """Make topics by their full names, with so many partitions. One that exists is left alone."""
    replicas = min(3, len(admin._client.cluster.brokers()) or 1)
    new = [
        NewTopic(name, partitions, replicas, topic_configs=_config(topic, replicas))
        for name, (topic, partitions) in topics.items()
    ]
    try:
        if admin._client.cluster.controller is None:
            await admin._client.force_metadata_update()
        if admin._client.cluster.controller is None:
            raise Unavailable("Kafka has no controller (yet)")
        answer = await admin.create_topics(new, timeout_ms=20_000)
    except (KafkaError, TimeoutError) as error:
        raise Unavailable(f"Kafka does not make topics: {error!r}") from error
    for name, code, *why in answer.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise Unavailable(f"Kafka does not make {name}: {for_code(code).__name__} {why}")


def _config(topic: Topic, replicas: int) -> dict[str, Any]:
    config = {
        "max.message.bytes": str(_RECORD_BYTES_MAX),
        "min.insync.replicas": str(2 if replicas >= 3 else 1),
    }
    if topic.compacted:
        return config | {
            "cleanup.policy": "compact",
            "segment.bytes": str(_SEGMENT_BYTES),
            "min.cleanable.dirty.ratio": "0.1",
        }
    return config | {"cleanup.policy": "delete", "retention.ms": str(topic.retention_ms)}
