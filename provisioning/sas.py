"""The access policy that all SAS URLs name, kept over restarts; its revocation, and the calls for that.

A revocation is on disk before storage is asked. A crash in between is made up for by the next start, whose
store puts in force what the registry says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter

from .package_store import PackageStore, new_policy
from .registry import Registry

_LOG = logging.getLogger(__name__)

_POLICY: Final = "sas_policy"
"""Under which name the registry keeps it."""

Json = dict[str, Any]


async def policy_of(registry: Registry) -> str:
    """The policy that URLs are to name."""
    return await registry.identity(_POLICY, new_policy)


class SharedUrls:
    """The URLs that a service has handed out, all of them together."""

    def __init__(self, registry: Registry, store: PackageStore) -> None:
        self._registry = registry
        self._store = store
        self._revoking = asyncio.Lock()

    def view(self) -> Json:
        """The policy that URLs name, and whether storage has yet to take it."""
        return {"policy": self._store.policy, "pending": self._store.revoking}

    async def revoke(self) -> Json:
        """Make all URLs useless that were handed out; where that is pending, as soon as storage answers."""
        async with self._revoking:
            policy = new_policy(self._store.policy)
            await self._registry.replace_identity(_POLICY, policy)
            await self._store.revoke(policy)
        _LOG.warning("SAS URLs that were handed out are revoked; those to come have the policy %s", policy)
        return self.view()


def sas_routes(urls: Callable[[], SharedUrls]) -> APIRouter:
    """The routes, for a service that runs by the time of a call."""
    router = APIRouter(prefix="/api/sas")

    @router.get("")
    async def show() -> Json:
        """The access policy that packages' URLs name; `pending` where storage has yet to take it."""
        return urls().view()

    @router.post("/revoke")
    async def revoke() -> Json:
        """Make all URLs of packages useless that were handed out; where `pending`, when storage answers."""
        return await urls().revoke()

    return router
