"""``/v1/models``, ``/v1/embeddings``, ``/v1/cache``, and the adapters that are loaded and unloaded while it serves."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from node.adapters.keeping import keep, kept
from node.adapters.publishing import publish_adapter
from node.errors import ConfigError, Missing, StoreError
from node.live.openai.bodies import Embedding, Load, Unload, read
from node.live.openai.refusals import Refusal, unknown_model
from node.live.openai.surface import AUTO, Surface, Updates
from node.serving.engine import Engine
from node.serving.registry import Named, prompts_of
from node.serving.updating import install, uninstall
from node.store.catalogue import Catalogue
from node.transfer.manifest import is_id


class AdministrationRoutes:
    """Says what is served, and changes it where that is allowed."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._changing = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/v1/models", self._models),
            web.get("/v1/models/{name:.+}", self._model),
            web.post("/v1/embeddings", self._embeddings),
            web.get("/v1/cache", self._cache),
            web.post("/v1/load_lora_adapter", self._load),
            web.post("/v1/unload_lora_adapter", self._unload),
        ]

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self._cards()})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for card in self._cards():
            if card["id"] == name:
                return web.json_response(card)
        raise unknown_model(name)

    def _cards(self) -> list[dict[str, Any]]:
        surface = self._surface
        cards = [self._card(surface.name, surface.name, None)]
        if len(surface.selector):
            cards.append(self._card(AUTO, AUTO, surface.name))
        cards += [self._card(named.name, named.root, surface.name) for named in surface.registry.all()]
        return cards

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._surface.created_s,
            "owned_by": "starling",
            "root": root,
            "parent": parent,
            "max_model_len": self._surface.serving.engine.language.context_tokens,
        }

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await read(request, Embedding)
        embedder = self._surface.selector.embedder
        if body.model != embedder.name:
            raise unknown_model(body.model)
        if body.dimensions not in (None, embedder.dimensions):
            raise Refusal(400, f"dimensions: allowed: {embedder.dimensions}", "invalid_value", "dimensions")
        texts = [body.input] if isinstance(body.input, str) else body.input
        rows = await asyncio.to_thread(embedder.embed, texts)
        encoded = [
            row.tolist() if body.encoding_format == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()
            for row in rows
        ]
        tokens = sum(len(text.split()) for text in texts)
        return web.json_response(
            {
                "object": "list",
                "model": body.model,
                "data": [
                    {"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(encoded)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _cache(self, request: web.Request) -> web.Response:
        cache, registry = self._surface.serving.residency.cache, self._surface.registry
        stats = cache.stats()
        victim = cache.next_victim()
        return web.json_response(
            {
                "capacity_bytes": cache.capacity_bytes,
                "used_bytes": cache.used_bytes,
                "free_bytes": cache.capacity_bytes - cache.used_bytes,
                "next_victim": victim,
                "waiting": cache.waiting(),
                "hits": stats.hits,
                "misses": stats.misses,
                "evicted": stats.evicted,
                "hit_ratio": stats.hit_ratio,
                "resident": [
                    {
                        "version": entry.key,
                        "names": registry.names_of(str(entry.key)),
                        "size_bytes": entry.size_bytes,
                        "references": entry.pins,
                        "score": entry.score,
                    }
                    for entry in cache.residents()
                ],
            }
        )

    async def _load(self, request: web.Request) -> web.Response:
        updates = self._allowed()
        body = await read(request, Load)
        if body.lora_name in (self._surface.name, AUTO):
            raise Refusal(400, f"lora_name: {body.lora_name!r} is taken by the model", "invalid_value", "lora_name")
        # One after another, and to the end even where the client goes: half of a change would be none.
        await asyncio.shield(asyncio.create_task(self._install(updates, body)))
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully")

    async def _install(self, updates: Updates, body: Load) -> None:
        surface = self._surface
        async with self._changing:
            try:
                named = await asyncio.to_thread(_published, updates, body, surface.serving.engine)
            except StoreError as error:
                raise Refusal(400, f"lora_path: {error}", "invalid_adapter", "lora_path") from None
            await install(surface.registry, surface.serving.residency, named, body.load)
            surface.selector.put(named)

    async def _unload(self, request: web.Request) -> web.Response:
        self._allowed()
        body = await read(request, Unload)
        async with self._changing:
            try:
                uninstall(self._surface.registry, self._surface.serving.residency, body.lora_name)
            except Missing:
                raise unknown_model(body.lora_name) from None
            self._surface.selector.remove(body.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' removed successfully")

    def _allowed(self) -> Updates:
        if self._surface.updates is None:
            raise Refusal(
                403, "Adapters are not loaded or unloaded here; serve with --allow-updates DIR.", "not_allowed"
            )
        return self._surface.updates


def _published(updates: Updates, body: Load, engine: Engine) -> Named:
    """In a thread: keep the files of an adapter that fits the model, or find it in the store; gives what it is.

    Raises:
        ConfigError: the path is not allowed, or what is there is refused.
        StoreError: it is damaged, or missing.
    """
    store, fingerprint = updates.store, engine.language.fingerprint
    folder = None if is_id(body.lora_path) else _inside(updates.allowed, body.lora_path)
    version = keep(store, folder, body.lora_name, fingerprint) if folder else body.lora_path
    artifact = kept(store, version)
    engine.stacks.check(artifact, fingerprint)
    if folder:
        with Catalogue(store, updates.store_folder, time.time) as catalogue:
            version = publish_adapter(catalogue, folder, body.lora_name, fingerprint).version
    return Named(body.lora_name, version, body.lora_path, prompts_of(store, artifact), body.pinned)


def _inside(allowed: Path, path: str) -> Path:
    """A folder that may be read. The message is the same whether something else is there or not."""
    try:
        folder = (allowed / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        folder = None
    if folder is None or not folder.is_dir() or not folder.is_relative_to(allowed.resolve()):
        raise ConfigError(f"lora_path: {path[:200]!r} is no folder in the one that adapters may be loaded from")
    return folder
