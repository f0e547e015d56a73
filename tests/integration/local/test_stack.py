"""The local stack serves: both brokers deliver, Azurite stores, and what they keep survives a restart."""

from __future__ import annotations

from pathlib import Path

import aiomqtt
import pytest
from azure.storage.blob.aio import BlobServiceClient

from broker.local import LocalBroker
from broker.local.node import NodeStack
from provisioning.azurite import LocalAzurite, start_azurite

pytestmark = pytest.mark.real


async def test_a_message_of_quality_one_arrives(each_broker: LocalBroker, unique: str) -> None:
    async with (
        aiomqtt.Client(each_broker.host, each_broker.port) as subscriber,
        aiomqtt.Client(each_broker.host, each_broker.port) as publisher,
    ):
        await subscriber.subscribe(f"{unique}/+", qos=1)
        await publisher.publish(f"{unique}/a", b"hello", qos=1)
        async for message in subscriber.messages:
            assert (message.payload, message.qos) == (b"hello", 1)
            break


async def test_a_blob_comes_back(azurite: LocalAzurite, unique: str) -> None:
    async with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        container = await service.create_container(unique)
        await container.upload_blob("b", b"x" * 70_000)
        assert await (await container.download_blob("b")).readall() == b"x" * 70_000


async def test_blobs_and_their_addresses_survive_a_restart_of_azurite(
    tmp_path: Path, stack_cache: NodeStack, unique: str
) -> None:
    async with (
        await start_azurite(state_dir=tmp_path, port=0) as first,
        BlobServiceClient.from_connection_string(first.connection_string) as service,
    ):
        await (await service.create_container(unique)).upload_blob("b", b"kept")
    async with (
        await start_azurite(state_dir=tmp_path) as second,
        BlobServiceClient.from_connection_string(second.connection_string) as service,
    ):
        assert second.blob_endpoint == first.blob_endpoint
        assert await (await service.get_blob_client(unique, "b").download_blob()).readall() == b"kept"
