"""Read an experiment: the file, then the environment, then ``--set``; every mistake becomes one clear line."""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from node.config import ExperimentConfig
from node.errors import ConfigError

_PREFIX = "STARLING_"
NODE_PREFIX = "STARLING_NODE__"
"""Begins what overrides a node's own file, which no experiment knows."""
_FILE_SUFFIXES = (".csv", ".npz", ".parquet")
_PATHS = (
    ("topology", "path"),
    ("data", "name"),
    ("public", "name"),
    ("devices", "trace"),
    ("network", "latency_s", "matrix"),
    ("churn", "trace"),
    ("executor", "cache"),
    ("executor", "spill_folder"),
)
_FORM = re.compile(r"[a-z-]+\[.+\]")
"""What pydantic puts into a place to say which form of a value it tried."""
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def bundled() -> list[str]:
    """Names of the experiments that come with Starling."""
    folder = resources.files("node") / "experiments"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(experiment: str, sets: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> ExperimentConfig:
    """The effective configuration of an experiment.

    Args:
        experiment: a TOML file, or the name of a bundled experiment.
        sets: ``table.key=value`` overrides, values in TOML syntax; a bare word is a string.
        environ: ``STARLING_TABLE__KEY`` overrides, weaker than ``sets``.

    Raises:
        ConfigError: one line that names the file, the key, and what is allowed.
    """
    source, values = read_tables(experiment)
    values.pop("sweep", None)  # it says which experiments there are (node.experiment.axes), and nothing of this one
    if Path(source).is_file():
        make_paths_absolute(values, Path(source).parent)
    for key, value in _from_environment(environ or {}):
        _put(values, key, value, f"environment {_PREFIX}{'__'.join(key).upper()}")
    for override in sets:
        key, value = from_flag(override)
        _put(values, key, value, f"--set {override}")
    make_paths_absolute(values, Path.cwd())
    return validated(values, source)


def validated(values: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Check the keys and values of an experiment that came from ``source``."""
    try:
        return ExperimentConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error.errors(), ExperimentConfig)}") from None


def digest(config: ExperimentConfig) -> str:
    """A hash of everything that an experiment's results follow from."""
    return hashlib.blake2b(config.model_dump_json().encode(), digest_size=8).hexdigest()


def explain(errors: list[ErrorDetails], model: Any, prefix: str = "") -> str:
    """The first of some validation errors in words: the key, what is wrong, what is allowed."""
    error = errors[0]
    path = [str(part) for part in error["loc"] if not _FORM.fullmatch(str(part))]
    key = (prefix + ".".join(path)).removesuffix(".")
    kind, more = error["type"], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if kind == "extra_forbidden":
        path = path or [str(error["loc"][-1])]
        known = _known_keys(model, error["loc"][:-1])
        return f"{key}: there is no such key{_nearest(path[-1], known)}; known here: {', '.join(known) or 'none'}{more}"
    message = "must be a table" if kind == "model_type" else error["msg"].removeprefix("Value error, ")
    shown = f" (got {error['input']!r:.60})" if kind not in ("missing", "value_error") else ""
    return f"{key}: {message[0].lower() + message[1:]}{shown}{more}"


def unknown(what: str, key: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of those that are known."""
    known = sorted(known)
    return ConfigError(f"{key}: no {what} is called {name!r}{_nearest(name, known)}; known: {', '.join(known)}")


def read_tables(experiment: str) -> tuple[str, dict[str, Any]]:
    """An experiment's file, or the name of a bundled one, and all that is written in it, unchecked."""
    source, text = _read(experiment)
    try:
        return source, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a table, written as in ``--set``, and its value."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(experiment: str) -> tuple[str, str]:
    path = Path(experiment)
    if path.suffix == ".toml" or path.exists():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"{experiment}: cannot be read: {reason}") from None
    entry = resources.files("node") / "experiments" / f"{experiment}.toml"
    if not entry.is_file():
        raise unknown("experiment", "EXPERIMENT", experiment, bundled())
    return experiment, entry.read_text(encoding="utf-8")


def make_paths_absolute(values: dict[str, Any], folder: Path) -> None:
    """Paths in a file are relative to it, others to the current folder: a run's copy means the same from everywhere."""
    for place in _PATHS:
        section: Any = values
        for key in place[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(name := section.get(place[-1]), str) and name:
            is_path = name.endswith(_FILE_SUFFIXES) if place[-1] == "name" else name != "phones"
            if is_path and not Path(name).is_absolute():
                section[place[-1]] = str((folder / name).resolve())


def _from_environment(environ: Mapping[str, str]) -> Iterable[tuple[list[str], Any]]:
    for name in sorted(environ):
        if name.startswith(_PREFIX) and not name.startswith(NODE_PREFIX):
            yield name.removeprefix(_PREFIX).lower().split("__"), _value(environ[name])


def from_flag(override: str) -> tuple[list[str], Any]:
    """The key, part by part, and the value of ``table.key=value``. Raises ConfigError for what is written otherwise."""
    key, separator, text = override.partition("=")
    if not separator or not _KEY.fullmatch(key.strip()):
        shown = " ".join(override.split())
        raise ConfigError(f"--set {shown}: write it as key=value, for example training.lr=0.05")
    return key.strip().split("."), _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], key: list[str], value: Any, source: str) -> None:
    table = values
    for part in key[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {part!r} is not a table")
    table[key[-1]] = value


def _known_keys(model: Any, place: Iterable[Any]) -> list[str]:
    """The keys of the table at a place: a way through fields, numbers of a list, and forms of a value."""
    for part in place:
        if _FORM.fullmatch(str(part)):
            forms = {
                tag.tag: form for form, *tags in map(get_args, get_args(model)) for tag in tags if isinstance(tag, Tag)
            }
            model = forms.get(str(part))
        elif isinstance(part, int):
            model = next((form for form in get_args(model)), None)
        elif hasattr(model, "model_fields") and part in model.model_fields:
            model = model.model_fields[part].annotation
        else:
            return []
    return sorted(getattr(model, "model_fields", {}))


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
