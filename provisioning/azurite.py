"""Azurite: the local blob storage, one process of the local stack.

Only the blob service runs. It keeps its data in the state directory, on the port of the last time, so SAS
URLs that were handed out stay valid over a restart. Its metadata reach the disk every few seconds and at a
clean stop: what was uploaded in the last seconds before a crash can be gone, and is uploaded again by the
device's next attempt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from broker.local import LocalProcess, Program, Progress, ignore_progress
from broker.local.node import STACK_SOURCE, NodeStack, cache_dir, provide_node_stack
from broker.local.ports import LOOPBACK
from broker.local.records import stack_directory

DEFAULT_PORT: Final = 10000
# The account that every storage emulator has, documented for that purpose: no secret, loopback only.
ACCOUNT: Final = "devstoreaccount1"
ACCOUNT_KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
KEEP_ALIVE_S: Final = 60


@dataclass(frozen=True, kw_only=True)
class LocalAzurite:
    """An Azurite that runs; ``async with`` or `stop` ends it.

    ``blob_endpoint`` is ``http://127.0.0.1:PORT/devstoreaccount1``, without a slash at the end.
    """

    connection_string: str = field(repr=False)
    blob_endpoint: str
    port: int
    process: LocalProcess

    async def stop(self) -> None:
        """Stop it; the blobs are kept."""
        await self.process.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def connection_string(endpoint: str) -> str:
    """The storage connection string of an Azurite whose blob endpoint is ``endpoint``."""
    scheme = endpoint.partition(":")[0]
    account = f"AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY}"
    return f"DefaultEndpointsProtocol={scheme};{account};BlobEndpoint={endpoint};"


def azurite_program(stack: NodeStack, directory: Path, cache: Path) -> Program:
    """The program that runs Azurite's blob service with its data in ``directory``."""
    script = stack.modules / "azurite" / "dist" / "src" / "blob" / "main.js"
    sas = STACK_SOURCE / "azurite_sas.cjs"

    def command(port: int) -> tuple[str, ...]:
        return (
            str(stack.node), "--require", str(sas), str(script),
            "--blobHost", LOOPBACK, "--blobPort", str(port),
            "--blobKeepAliveTimeout", str(KEEP_ALIVE_S), "--location", str(directory),
            # The SDK may speak a newer API version than Azurite lists; the operations used here are old.
            "--skipApiVersionCheck", "--silent", "--disableTelemetry",
        )  # fmt: skip

    return Program(
        name="azurite",
        role="azurite",
        command=command,
        fingerprint=hashlib.sha256("\n".join(command(0)).encode() + sas.read_bytes()).hexdigest(),
        default_port=DEFAULT_PORT,
        # Node 22 and later keep compiled code here, which shortens each start.
        environment={"NODE_COMPILE_CACHE": str(cache / "compiled")},
    )


async def start_azurite(
    *, state_dir: Path, port: int | None = None, progress: Progress = ignore_progress
) -> LocalAzurite:
    """Start Azurite with its data in ``state_dir``, or adopt the one that a killed service left running.

    ``port``: None is the port of the last time, else 10000, else any free one; 0 the same without 10000; a
    number is that port or `PortInUseError`. Raises `broker.local.LocalStackError`'s subclasses.
    """
    directory = stack_directory(state_dir, "azurite")
    stack = await provide_node_stack(progress=progress)
    process = LocalProcess(
        azurite_program(stack, directory, cache_dir()), directory=directory, port=port, progress=progress
    )
    await process.start()
    endpoint = f"http://{LOOPBACK}:{process.port}/{ACCOUNT}"
    return LocalAzurite(
        connection_string=connection_string(endpoint),
        blob_endpoint=endpoint,
        port=process.port,
        process=process,
    )
