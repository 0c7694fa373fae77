"""Find classes by name: bundled ones and plug-ins by entry point, anything else by ``module:Class``."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from node.errors import ConfigError
from node.experiment.loading import unknown
from node.world import cannot_go_on

T = TypeVar("T")


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """What is registered under an entry-point group, by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def find(use: str, kind: type[T], key: str, group: str | None = None) -> type[T]:
    """The class that ``use`` names.

    Args:
        use: a registered name, or ``module:Class`` from the Python path or the current folder.
        kind: what it must be a subclass of.
        key: the key of the experiment that says so, for the error.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is something else.
    """
    found = by_path(use, key) if ":" in use else _by_name(use, kind, key, group)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}: {use} is not a subclass of node.{kind.__name__}")
    return found


def _by_name(use: str, kind: type[Any], key: str, group: str | None) -> Any:
    entries = registered(group) if group else {}
    if use not in entries:
        what = kind.__name__.lower()
        error = unknown(what, key, use, entries)
        raise ConfigError(f"{error}, or module:Class")
    return by_path(entries[use].value, key)


def by_path(use: str, key: str) -> Any:
    """What ``module:name`` is, from the Python path or the current folder. Raises ConfigError where there is none."""
    module_name, _, name = use.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # a command that pip installs does not look in the current folder by itself
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}: {module_name!r} cannot be imported: {cannot_go_on(error)}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{key}: module {module_name!r} has no {name!r}")
    return getattr(module, name)
