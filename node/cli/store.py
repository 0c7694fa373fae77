"""``starling store``: what a storage folder keeps: adapters and files, byte for byte, under names."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.errors import ConfigError, Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from node.store.catalogue import Catalogue, Entry

app = typer.Typer(
    help="What a storage folder keeps: adapters and files under names.", no_args_is_help=True, rich_markup_mode=None
)

Folder = Annotated[Path, typer.Option("--store", metavar="DIR", help="The storage folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Under which it is kept.")]
FOLDER = Path("store")


@app.command()
def put(
    path: Annotated[Path, typer.Argument(help="An adapter's folder, as PEFT saves it, or a file.")],
    name: Annotated[str, typer.Option(help="What to keep it under; default: the name of the folder or file.")] = "",
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The base model's folder; default: what the adapter names.")
    ] = None,
    store: Folder = FOLDER,
    quota_bytes: Annotated[int | None, typer.Option(min=0, help="Refuse what would take more, all together.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep an adapter or a file; a name that is taken moves to it."""
    from node.adapters.publishing import publish_adapter, publish_file

    name = name or path.resolve().name
    if not path.exists():
        raise ConfigError(f"{path}: is not there; name an adapter's folder or a file")
    with _opened(store, quota_bytes, make=True) as catalogue:
        if path.is_dir():
            entry = publish_adapter(catalogue, path, name, _fingerprint(path, base))
        else:
            entry = publish_file(catalogue, path, name)
    _tell(_facts(entry), f"{name}: {entry.kind}, {entry.size_bytes} bytes, version {entry.version}", as_json)


@app.command()
def get(
    name: Name,
    out: Annotated[Path, typer.Argument(help="A folder or file to write; it must not be there yet.")],
    store: Folder = FOLDER,
) -> None:
    """Write an adapter or a file as it was put, byte for byte."""
    from node.adapters.publishing import write

    with _opened(store) as catalogue:
        write(catalogue, name, out)
    typer.echo(f"{name}: written to {out}")


@app.command("ls")
def list_(store: Folder = FOLDER, as_json: AsJson = False) -> None:
    """List what is kept."""
    with _opened(store) as catalogue:
        entries = catalogue.entries()
        used_bytes = catalogue.used_bytes()
    if as_json:
        typer.echo(json.dumps({"used_bytes": used_bytes, "entries": [_facts(entry) for entry in entries]}))
        return
    for entry in entries:
        typer.echo(f"{entry.version[:16]}  {entry.kind:8}{entry.size_bytes:>14}  {_when(entry)}  {entry.name}")
    typer.echo(f"{len(entries)} kept, {used_bytes} bytes")


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="What to forget.")],
    store: Folder = FOLDER,
) -> None:
    """Forget names, and remove from disk what no other name leads to."""
    with _opened(store) as catalogue:
        entries = [catalogue[name] for name in names]  # all of them, or none
        for entry in entries:
            catalogue.remove(entry.name)
        gone = [part for entry in entries for part in catalogue.parts(entry.version)]
        before = catalogue.used_bytes()
        catalogue.collect(among=gone)
        freed_bytes = before - catalogue.used_bytes()
    typer.echo(f"{', '.join(names)}: removed, {freed_bytes} bytes freed")


@app.command()
def verify(store: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Read everything that is kept, and say what is damaged; exit code 3 where something is."""
    with _opened(store) as catalogue:
        found = {id: None if error is None else str(error) for id, error in catalogue.verify()}
    damaged = {id: error for id, error in found.items() if error is not None}
    facts = {"objects": len(found), "damaged": damaged}
    lines = "\n".join([*damaged.values(), f"{len(found)} objects, {len(damaged)} damaged"])
    _tell(facts, lines, as_json)
    if damaged:
        raise typer.Exit(3)


@contextmanager
def _opened(folder: Path, quota_bytes: int | None = None, make: bool = False) -> Iterator[Catalogue]:
    from node.store.catalogue import Catalogue
    from node.store.objects import Store

    if not make and not (folder / "objects").is_dir():
        raise ConfigError(f"--store {folder}: is no storage folder; starling store put makes one")
    with Catalogue(Store(folder), folder, time.time, quota_bytes) as catalogue:
        yield catalogue


def _fingerprint(folder: Path, base: Path | None) -> str:
    from node.adapters.configuration import FILE_NAME
    from node.adapters.fingerprint import base_fingerprint

    if base is not None:
        return base_fingerprint(base)
    try:
        named = json.loads((folder / FILE_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    if not isinstance(named, str) or not Path(named).is_dir():
        raise ConfigError(f"{folder}: its base model {named!r} is not on this machine; say --base DIR")
    try:
        return base_fingerprint(Path(named))
    except Corrupt as error:
        raise ConfigError(f"--base: {error}") from None


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "version": entry.version,
        "size_bytes": entry.size_bytes,
        "published": _when(entry),
    }


def _when(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.published_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tell(facts: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else text)
