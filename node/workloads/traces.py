"""Recorded requests: files in the formats of the Azure LLM inference trace, Splitwise and BurstGPT.

A file is recognised by its header. Times begin at 0 with the first row; rows must be sorted by time.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from node.errors import ConfigError
from node.workloads.arrivals import Times

_DATE_CHARACTERS = len("2023-11-16 18:17:03")
_TICKS_PER_S = 10**7


@dataclass(frozen=True)
class Trace:
    """Requests of which only times and lengths are known; each array has shape [requests]."""

    arrival_s: Times
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)

    def first(self, requests: int) -> Trace:
        """The beginning of the trace."""
        return Trace(self.arrival_s[:requests], self.prompt_tokens[:requests], self.output_tokens[:requests])

    def faster(self, times: float) -> Trace:
        """The same requests at ``times`` their rate."""
        return Trace(self.arrival_s / times, self.prompt_tokens, self.output_tokens)

    @property
    def cv(self) -> float:
        """The coefficient of variation of the gaps between requests."""
        gaps = np.diff(self.arrival_s)
        return float(gaps.std() / gaps.mean())


@dataclass(frozen=True)
class _Format:
    time: str
    prompt: str
    output: str
    ticks: Callable[[str], int]
    """A time as a number of 100 ns."""


def _date(text: str) -> int:
    # In whole units of 100 ns: the seventh digit of the Azure trace is beyond what datetime keeps.
    seconds = datetime.fromisoformat(text[:_DATE_CHARACTERS] + "+00:00").timestamp()
    fraction = text[_DATE_CHARACTERS:].removeprefix(".")
    if fraction and not fraction.isdecimal():
        raise ValueError(text)
    return int(seconds) * _TICKS_PER_S + int(fraction[:7].ljust(7, "0"))


def _seconds(text: str) -> int:
    return round(float(text) * _TICKS_PER_S)


_FORMATS = (
    _Format("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date),
    _Format("arrival_timestamp", "prompt_size", "token_size", _seconds),
    _Format("Timestamp", "Request tokens", "Response tokens", _seconds),
)


def read(path: Path) -> Trace:
    """Read a trace of requests.

    Raises:
        ConfigError: the file cannot be read, is of no known format, or one of its rows is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(path, file))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text; allowed: a CSV file of requests") from None
    if not rows:
        raise ConfigError(f"{path}: has no rows")
    ticks, prompts, outputs = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Trace((ticks - ticks[0]) / _TICKS_PER_S, prompts, outputs)


def _rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, int, int]]:
    table = csv.DictReader(lines)
    format = _format_of(path, table.fieldnames or ())
    last = None
    for row in table:
        try:
            found = format.ticks(row[format.time]), int(row[format.prompt]), int(row[format.output])
        except (ValueError, TypeError, OverflowError):
            raise ConfigError(f"{path}, line {table.line_num}: not a time and two numbers of tokens") from None
        if min(found[1:]) < 0:
            raise ConfigError(f"{path}, line {table.line_num}: tokens cannot be fewer than 0")
        if last is not None and found[0] < last:
            raise ConfigError(f"{path}, line {table.line_num}: comes before the row above; sort the rows by time")
        last = found[0]
        yield found


def _format_of(path: Path, columns: object) -> _Format:
    names = set(columns) if isinstance(columns, (list, tuple)) else set()
    for format in _FORMATS:
        if {format.time, format.prompt, format.output} <= names:
            return format
    known = "; ".join(f"{each.time}, {each.prompt}, {each.output}" for each in _FORMATS)
    raise ConfigError(f"{path}: no known header; allowed are files with the columns {known}")
