"""Results of others, from a file: they stand in the leaderboard beside one's own, in a division that has no ranks.

Nobody can tell from a number what it was reached with: other local models, other settings, other code.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from node.config.section import NotNegative, Section
from node.errors import ConfigError
from node.experiment.loading import explain
from node.experiment.oneshot_cell import Record
from node.experiment.oneshot_grid import CLIENTS, Setting, divided
from node.experiment.oneshot_presets import entrants

FOLDER = "open"
_CELL = re.compile(r"R[-0-5] D[0-4] (W[0-3])+ H[01] M[1-3] F[1-3] S[0-2]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

Share = Annotated[float, Field(ge=0, le=1)]


class OpenResult(Section):
    """One run in one setting."""

    data: str
    """Data set, as the benchmark calls it."""
    partition: str
    """How it was divided: ``iid``, ``dirichlet(0.1)``, …"""
    clients: int = Field(CLIENTS, ge=1)
    """Clients that could upload."""
    seed: int = Field(0, ge=0)
    """Tells runs of one setting apart."""
    accuracy: Share
    """On the global test set."""
    ece: Share | None = None
    """Expected calibration error, of 15 bins."""
    worst_client: Share | None = None
    """Accuracy on the distribution of the client that it serves worst."""
    up_bytes: NotNegative | None = None
    """Sent by a client, mean."""
    down_bytes: NotNegative | None = None
    """Received by a client, mean."""
    client_flops: NotNegative | None = None
    """Of a client's training, mean."""
    aggregator_flops: NotNegative | None = None
    """Of making the result."""


class OpenEntry(Section):
    """What somebody has reached."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")
    """What the row is called, in one line."""
    source: str = ""
    """Where it can be read of, or run."""
    assumptions: str
    """Its cell, as in ``starling list algorithms``: R1 D0 W2 H0 M1 F1 S0."""
    results: tuple[OpenResult, ...] = Field(min_length=1)
    """At least one."""

    @field_validator("assumptions")
    @classmethod
    def _is_cell(cls, value: str) -> str:
        if not _CELL.fullmatch(value):
            raise ValueError("must be a cell, for example 'R1 D0 W2 H0 M1 F1 S0'")
        return value


def read_entry(path: Path) -> OpenEntry:
    """A file of results. Raises ConfigError that names the file, the key and what is allowed."""
    try:
        entry = OpenEntry.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--add {path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"--add {path}: {explain(error.errors(), OpenEntry)}") from None
    if entry.name in {row.name for row in entrants()}:
        raise ConfigError(f"--add {path}: name: {entry.name!r} is a row of this benchmark's own; allowed: another name")
    for result in entry.results:
        divided(Setting(result.data, result.partition))
    return entry


def add(path: Path, folder: Path) -> OpenEntry:
    """Keep a file's results in a benchmark's folder; the same name replaces what it had before."""
    entry = read_entry(path)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / FOLDER / _file_of(entry.name))
    return entry


def _file_of(name: str) -> str:
    """One file for each name, whatever is in it."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{_UNSAFE.sub('_', name)}-{digest}.json"


def added(folder: Path) -> list[Record]:
    """Cells of all results that a benchmark's folder has been given."""
    return [record for path in sorted((folder / FOLDER).glob("*.json")) for record in _records(read_entry(path))]


def _records(entry: OpenEntry) -> Iterator[Record]:
    where = ("data", "partition", "clients", "seed")
    for result in entry.results:
        told: dict[str, Any] = result.model_dump()
        setting = {key: told.pop(key) for key in where} | {"damage": ""}
        status = {"division": "open", "status": "finished", "error": None}
        yield {"entrant": entry.name, "assumptions": entry.assumptions, "setting": setting, "figures": told, **status}
