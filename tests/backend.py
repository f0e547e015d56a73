"""The SDK's in-memory backend over gRPC, which stands in for Durable Task backends elsewhere."""

from __future__ import annotations

from durabletask.testing import InMemoryOrchestrationBackend

from broker.local.ports import any_free_port


class Backend(InMemoryOrchestrationBackend):
    """Not started when made. Stopped and started again it has all that it had, on the same port."""

    def __init__(self) -> None:
        self.port = any_free_port()
        super().__init__(port=self.port)

    @property
    def endpoint(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"
