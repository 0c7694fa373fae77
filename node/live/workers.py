"""Calls that would hold the event loop up, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_worker(workers: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a call gives that runs in a thread. Cancelled, it ends after the call: what that uses must not go before."""
    job = asyncio.wrap_future(workers.submit(call, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        job.exception()
        raise
