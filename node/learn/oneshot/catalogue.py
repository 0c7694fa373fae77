"""The one-shot algorithms that there are, by name: bundled ones and plug-ins alike are entry points."""

from __future__ import annotations

import difflib
import importlib
import inspect
from functools import cache, lru_cache
from importlib.metadata import entry_points

from pydantic import ValidationError

from node.assumptions import Assumptions
from node.errors import ConfigError
from node.learn.oneshot.algorithm import Algorithm, Measuring, OwnTraining, Streaming

GROUP = "starling.algorithms"


@cache
def known() -> dict[str, str]:
    """``module:Class`` by name."""
    return {entry.name: entry.value for entry in sorted(entry_points(group=GROUP))}


@lru_cache(maxsize=256)
def find(name: str) -> type[Algorithm]:
    """The class of an algorithm, by its name or as ``module:Class``.

    Raises ConfigError where there is none, or where it does what it has not declared.
    """
    place = name if ":" in name else known().get(name)
    if place is None:
        near = difflib.get_close_matches(name, known(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"protocol.algorithm: {name!r} is unknown{hint}; known: {', '.join(known())}, or module:Class"
        )
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"protocol.algorithm: {name}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(f"protocol.algorithm: {name} is no subclass of Algorithm")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"protocol.algorithm: {name} lacks {missing}; write them, or name a subclass that has them")
    if not isinstance(getattr(found, "declares", None), Assumptions):
        raise ConfigError(f"protocol.algorithm: {name} does not say what it assumes; declares = Assumptions(...)")
    if reason := _undeclared(found):
        raise ConfigError(f"protocol.algorithm: {name} {reason}")
    return found


def _undeclared(kind: type[Algorithm]) -> str:
    """What a class does without having declared it; empty where nothing."""
    declares = kind.declares
    if kind.sends_model and not declares.tells("model"):
        return "uploads models, which it has not declared; declare reveals='model', or sends_model = False"
    speaks_only = declares.reveals == "predictions"
    if issubclass(kind, Measuring) and not speaks_only and not declares.tells("statistics"):
        return f"uploads parts, which reveals={declares.reveals!r} does not cover; declare reveals='statistics' or more"
    if issubclass(kind, OwnTraining) and not declares.own_training:
        return "has clients train by a loss of their own, which it has not declared; declare own_training=True"
    if kind.streams and not issubclass(kind, Streaming):
        return "says that it streams, and does not say how; make it a subclass of Streaming"
    return ""


@lru_cache(maxsize=256)
def configured(name: str, options: str) -> Algorithm:
    """An algorithm with its options, as JSON.

    Raises ConfigError where there is none of that name, or it does not take the options.
    """
    kind = find(name)
    try:
        return kind(kind.Config.model_validate_json(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("protocol.options", *first["loc"])))
        allowed = ", ".join(kind.Config.model_fields) or "none"
        raise ConfigError(f"{key}: {first['msg']} (options of {name}: {allowed})") from None
