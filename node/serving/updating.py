"""Changes which adapters are served while requests run: the old version answers until the new one is resident."""

from __future__ import annotations

import asyncio

from node.errors import Missing
from node.serving.registry import Named, Registry
from node.serving.residency import Residency


async def install(registry: Registry, residency: Residency, named: Named, load: bool = False) -> None:
    """Serve an adapter under its name, in place of what has the name.

    ``load``: only when it is resident; always so where it is pinned, or the name is taken.

    Raises:
        ConfigError: it does not fit the model, or too many are pinned; what was served before is served on.
        StarlingError: it could not be had.
    """
    if load or named.is_pinned or named.name in registry:
        await asyncio.shield(residency.fetch(named.version))
    while named.is_pinned:
        try:
            residency.keep(named.version)
            break
        except Missing:  # evicted again before it was this task's turn
            await asyncio.shield(residency.fetch(named.version))
    before = registry.put(named)
    if before:
        _drop(registry, residency, before)


def uninstall(registry: Registry, residency: Residency, name: str) -> Named:
    """Serve it no more; requests that have begun end with it. Missing where there is none of that name."""
    named = registry.remove(name)
    _drop(registry, residency, named)
    return named


def _drop(registry: Registry, residency: Residency, named: Named) -> None:
    if named.is_pinned:
        residency.release(named.version)
    if not registry.names_of(named.version):
        residency.forget(named.version)
