"""The ``[sweep]`` table of an experiment file: keys as ``--set`` has them, each with a list of values.

::

    [sweep]
    protocol = [{ use = "local" }, { use = "ditto", pull = 0.5 }]   # a table sets some keys of that section together
    data.groups = [[24, 8], [28, 4]]
    seed = [1, 2, 3]

In brackets, ``"[protocol]" = [{ use = "local" }]``, a table is the whole section: nothing else of the file's counts.

All combinations run. Written as ``[[sweep]]``, several times, each table gives combinations of its own: a grid need
not be a box. One with ``clock = ["virtual"]`` is for that clock only; where none is left, the experiment itself runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from node.errors import ConfigError
from node.experiment.loading import flat, from_flag, make_paths_absolute, read_tables

TABLE = "sweep"
"""What the table is called; it is no part of the experiment that each of its points is."""
CLOCK = "clock"
_SECTION = re.compile(r"\[([A-Za-z0-9_-]+)\]")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./:-]*")
_EXAMPLE = "for example seed = [1, 2, 3]"


@dataclass(frozen=True)
class Axis:
    """One key of a sweep."""

    key: str
    settings: tuple[Mapping[str, str], ...]
    """What each of its values sets: keys and values, as ``--set`` takes them."""

    def covers(self, key: str) -> bool:
        """Whether it sets a key, or one that the key is a part of or has as a part."""
        return f"{key}.".startswith(f"{self.key}.") or f"{self.key}.".startswith(f"{key}.")


Grid: TypeAlias = tuple[Axis, ...]
"""Axes, all combinations of whose values are meant."""


def grids(experiment: str, clock: str | None = None) -> list[Grid]:
    """What the file of an experiment (or the bundled one of that name) sweeps; none where it has no such table.

    Args:
        experiment: a TOML file, or the name of a bundled experiment.
        clock: the only one to run under, where somebody has asked for it.

    Raises:
        ConfigError: one line that names the file, the key and what is allowed.
    """
    source, values = read_tables(experiment)
    if TABLE not in values:
        return []
    written = values[TABLE]
    tables = written if isinstance(written, list) else [written]
    if not tables or not all(isinstance(table, dict) and table for table in tables):
        raise ConfigError(f"{source}: {TABLE}: must be a table of keys with a list of values each, {_EXAMPLE}")
    found = [tuple(_axis(source, *entry) for entry in flat(table)) for table in tables]
    return found if clock is None else of_clock(found, clock)


def replaced(grid: Grid, others: Sequence[Axis]) -> Grid:
    """A grid with other axes in place of its own of the same keys; further ones come last."""
    kept = [axis for axis in grid if not any(axis.covers(other.key) for other in others)]
    return (*kept, *others)


def of_clock(found: Sequence[Grid], clock: str) -> list[Grid]:
    """The grids that are for a clock: all but those that sweep it without this one."""
    return [
        tuple(axis for axis in grid if axis.key != CLOCK)
        for grid in found
        if all({CLOCK: clock} in axis.settings for axis in grid if axis.key == CLOCK)
    ]


def _axis(source: str, key: str, values: Any) -> Axis:
    place = f"{source}: {TABLE}.{key}"
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{place}: must be a list of values, {_EXAMPLE} (got {values!r:.60})")
    if section := _SECTION.fullmatch(key):
        return Axis(section[1], tuple(_whole(source, place, section[1], value) for value in values))
    return Axis(key, tuple(_setting(source, place, key, value) for value in values))


def _whole(source: str, place: str, section: str, value: Any) -> Mapping[str, str]:
    """What one value sets that is a section with nothing of the file's own in it."""
    if not isinstance(value, dict):
        raise ConfigError(f'{place}: must be a list of tables, for example [{{ use = "local" }}] (got {value!r:.60})')
    return {
        section: _written({name: _absolute(source, f"{section}.{name}", part) for name, part in value.items()}, place)
    }


def _setting(source: str, place: str, key: str, value: Any) -> Mapping[str, str]:
    """What one value sets: a table in the place of a section, its keys, and nothing of the section's other ones."""
    parts = {f"{key}.{name}": part for name, part in value.items()} if _is_of_section(key, value) else {key: value}
    return {name: _written(_absolute(source, name, part), place) for name, part in parts.items()}


def _is_of_section(key: str, value: Any) -> bool:
    return isinstance(value, dict) and "." not in key


def _absolute(source: str, key: str, value: Any) -> Any:
    """A value; where it is a path in a file, what it means from everywhere."""
    if not Path(source).is_file():
        return value
    *sections, last = key.split(".")
    innermost = {last: value}
    tables: dict[str, Any] = innermost
    for section in reversed(sections):
        tables = {section: tables}
    make_paths_absolute(tables, Path(source).parent)
    return innermost[last]


def _written(value: Any, place: str) -> str:
    """A value as TOML in one line; a string that needs no quotes has none."""
    match value:
        case str():
            is_plain = _PLAIN.fullmatch(value) and from_flag(f"key={value}")[1] == value
            return value if is_plain else _quoted(value, place)
        case dict():
            return (
                "{" + ", ".join(f"{_quoted(key, place)} = {_quoted(part, place)}" for key, part in value.items()) + "}"
            )
        case list():
            return "[" + ", ".join(_quoted(part, place) for part in value) + "]"
        case float() if not math.isfinite(value):
            return str(value)
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            raise ConfigError(f"{place}: no experiment has a value like {value}")


def _quoted(value: Any, place: str) -> str:
    """The same inside a list or table, where every string has quotes."""
    if not isinstance(value, str):
        return _written(value, place)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # all that TOML escapes and JSON does not
