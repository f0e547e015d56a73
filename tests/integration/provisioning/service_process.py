"""A service in a process of its own, to be killed: python -m … STATE_DIR BROKER_URL BLOB CONTAINER."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from provisioning.service import run_service
from provisioning.settings import Environment, ServiceSettings


def main() -> None:
    """Run until killed."""
    state_dir, broker_url, blob, container = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    settings = ServiceSettings(
        state_dir=Path(state_dir),
        broker_url=broker_url,
        blob_connection_string=blob,
        container=container,
        engine=Environment.read().engine,
        api_port=0,
        publish_timeout_s=1.0,
    )
    asyncio.run(run_service(settings))


if __name__ == "__main__":
    main()
