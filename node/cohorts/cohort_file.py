"""Cohorts that somebody has written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from node.cohorts.forming import Cohorts
from node.errors import ConfigError

_KEY = "protocol.path"


def read(path: str, nodes: Sequence[int]) -> Cohorts:
    """Read the cohort of every node: a line holds the two numbers, counted from 0; ``#`` starts a comment.

    Raises:
        ConfigError: the file cannot be read; or a node is missing, unknown, or there twice; or a cohort has no members.
    """
    lines_of: dict[int, list[int]] = {}
    cohort_of: dict[int, int] = {}
    for number, node, cohort in _rows(path):
        lines_of.setdefault(node, []).append(number)
        cohort_of[node] = cohort
    doubled = {node: lines for node, lines in sorted(lines_of.items()) if len(lines) > 1}
    missing = sorted(set(nodes) - set(cohort_of))
    unknown = sorted(set(cohort_of) - set(nodes))
    wrong = [
        *(f"node {node} is on lines {' and '.join(map(str, lines))}" for node, lines in doubled.items()),
        *([f"missing: {_numbers(missing)}"] if missing else []),
        *([f"unknown: {_numbers(unknown)}"] if unknown else []),
    ]
    if wrong:
        raise ConfigError(f"{_KEY}: {path}: {'; '.join(wrong)}; write each node of the experiment once")
    found = sorted(set(cohort_of.values()))
    if found != list(range(len(found))):
        absent = next(cohort for cohort in range(len(found)) if cohort not in found)
        raise ConfigError(f"{_KEY}: {path}: cohort {absent} has no members; number cohorts from 0, without gaps")
    return tuple(tuple(sorted(node for node in cohort_of if cohort_of[node] == cohort)) for cohort in found)


def _rows(path: str) -> Iterator[tuple[int, int, int]]:
    """Line number, node and cohort of each line that has any."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{_KEY}: cannot read {path}: {error.strerror}; give a file of cohorts") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_KEY}: {path} is not text; write a node number and a cohort number a line") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            said = " ".join(words)
            raise ConfigError(f"{_KEY}: {path}:{number}: {said!r}; write a node number and a cohort number")
        yield number, int(words[0]), int(words[1])


def _numbers(nodes: Sequence[int]) -> str:
    """The first few of them."""
    shown = ", ".join(map(str, nodes[:5]))
    return f"{shown} and {len(nodes) - 5} more" if len(nodes) > 5 else shown
