"""``starling serve``: a language model and its adapters behind OpenAI's HTTP interface, until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import resource
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.errors import ConfigError

if TYPE_CHECKING:
    from node.serving.engine import Engine
    from node.serving.model import LanguageModel
    from node.serving.registry import Registry
    from node.store.catalogue import Catalogue

_FILES = 8_192
"""Open at once: a connection is one."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    model: Path | None
    store: Path | None
    adapters: Path | None
    testbed: bool
    listen: str
    slots: int
    cache_bytes: int | None
    places: int
    most_rank: int
    policy: str
    allow_updates: Path | None
    name: str
    drain_s: float


def serve(
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A causal model, as transformers saves it.")] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="The storage folder with its adapters.")] = None,
    adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Put the adapters in this folder's folders into the store first.")
    ] = None,
    testbed: Annotated[bool, typer.Option("--testbed", help="Serve the model of 'starling testbed'.")] = False,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0: any free one.")] = "127.0.0.1:8000",
    name: Annotated[str, typer.Option(help="The model's name for clients; default: its folder's.")] = "",
    slots: Annotated[int, typer.Option(min=1, help="Adapters in memory at once.")] = 8,
    cache_bytes: Annotated[
        int | None, typer.Option("--cache-bytes", min=1, help="The same by their size; instead of --slots.")
    ] = None,
    places: Annotated[int, typer.Option(min=1, help="Requests in a batch.")] = 32,
    most_rank: Annotated[int, typer.Option(min=1, help="The highest rank of an adapter.")] = 64,
    policy: Annotated[str, typer.Option(help="Which adapters stay in memory.")] = "w-tinylfu",
    allow_updates: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Let clients load adapters from this folder, and unload any.")
    ] = None,
    drain_s: Annotated[float, typer.Option("--drain-s", min=0, help="Of the end: for what has been asked.")] = 10.0,
) -> None:
    """Serve a language model and its adapters as OpenAI's API, until SIGTERM; model "auto" selects an adapter."""
    _run(
        Settings(
            model, store, adapters, testbed, listen, slots, cache_bytes, places, most_rank, policy, allow_updates, name,
            drain_s,
        )
    )  # fmt: skip


def _run(settings: Settings) -> None:
    """Serve until a signal, then answer what has been asked, and end."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("serving needs a package that is not installed: pip install 'starling-node[serve]'")
    from node.caching.policies import policy_named

    policy_named(settings.policy)
    if settings.testbed == (settings.model is not None):
        raise ConfigError("--model DIR, --testbed: allowed: one of them")
    if not settings.testbed and settings.store is None:
        raise ConfigError("--store DIR: is missing; name a storage folder, which is made where there is none")
    for option, folder in {"--adapters": settings.adapters, "--allow-updates": settings.allow_updates}.items():
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{option} {folder}: is no folder")
    _allow_files()
    with contextlib.ExitStack() as stack:
        store = settings.store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="starling-serve-")))
        asyncio.run(_serve(settings, store))


async def _serve(settings: Settings, folder: Path) -> None:
    from transformers.utils import logging

    from node.live.openai.server import OpenAIServer
    from node.live.openai.surface import Surface, Updates
    from node.serving.loop import Serving
    from node.serving.model import load_model
    from node.serving.selecting import Selector
    from node.serving.source import StoreSource
    from node.store.catalogue import Catalogue
    from node.store.objects import Store

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    ended = _signals()
    host, port = _address(settings.listen)
    base, adapters, prompts = _what(settings)
    language = load_model(base)
    store = Store(folder)
    with Catalogue(store, folder, time.time) as catalogue:
        registry = _registry(catalogue, language, adapters, prompts)
    engine, slots = _engine(settings, language)
    serving = Serving(engine, StoreSource(store), slots, policy=settings.policy)
    selector = Selector(registry.all())
    updates = Updates(store, folder, settings.allow_updates) if settings.allow_updates else None
    name = settings.name or base.resolve().name
    server = OpenAIServer(Surface(name, serving, registry, selector, updates, created_s=int(time.time())))
    serving.start()
    try:
        url = await server.start(host, port)
        typer.echo(f"{name} and {len(registry)} adapters ({len(selector)} to select from): {url}/v1")
        await ended.wait()
    finally:
        await server.close(settings.drain_s)


def _signals() -> asyncio.Event:
    """Set by SIGTERM or Ctrl-C."""
    ended = asyncio.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, ended.set)
    return ended


def _what(settings: Settings) -> tuple[Path, dict[str, Path], dict[str, tuple[str, ...]]]:
    """The model's folder, those of the adapters to publish first, and their example prompts where these are known."""
    adapters = {folder.name: folder for folder in sorted(settings.adapters.iterdir())} if settings.adapters else {}
    if settings.model is not None:
        return settings.model, adapters, {}
    from node.learn.choices import cache_folder
    from node.testbed.preparing import prepare
    from node.testbed.questions import profile

    bed = prepare(cache_folder() / "starling")
    return bed.base, {**bed.adapters, **adapters}, {name: tuple(profile(name)) for name in bed.adapters}


def _registry(
    catalogue: Catalogue, language: LanguageModel, adapters: dict[str, Path], prompts: dict[str, tuple[str, ...]]
) -> Registry:
    """What the store has, once the adapters of folders are in it."""
    from dataclasses import replace

    from node.adapters.publishing import publish_adapter
    from node.serving.registry import registered

    for name, folder in adapters.items():
        publish_adapter(catalogue, folder, name, language.fingerprint)
    registry, errors = registered(catalogue)
    for error in errors:
        typer.echo(f"starling: left out: {error}", err=True)
    for name, texts in prompts.items():
        registry.put(replace(registry[name], prompts=texts))
    return registry


def _engine(settings: Settings, language: LanguageModel) -> tuple[Engine, int]:
    """The engine, and how many slots it has: one more than adapters stay in memory."""
    from node.learn.choices import Choices, cache_folder
    from node.serving.engine import Engine, slot_bytes

    slots = settings.slots + 1
    if settings.cache_bytes is not None:
        each = slot_bytes(language, settings.most_rank)
        if settings.cache_bytes < each:
            raise ConfigError(f"--cache-bytes {settings.cache_bytes}: one adapter takes {each}; allowed: at least that")
        slots = settings.cache_bytes // each + 1
    engine = Engine(language, slots, settings.places, settings.most_rank)
    engine.choose_kernels(Choices(cache_folder() / "starling" / "kernels.json"), time.process_time)
    return engine, slots


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--listen {listen!r}: allowed: HOST:PORT, port 0 for any free one")
    return host.strip("[]"), int(port)


def _allow_files() -> None:
    """As many as a thousand connections need, where this machine lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
