"""The folder that a run leaves its results in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from node.errors import ConfigError

PICTURES = "pictures.parquet"
TIMELINE = "timeline.parquet"
TRACE = "trace.json"
LINEAGE = "lineage"
"""The folder of :mod:`node.provenance`'s logs."""
_FILES = (
    "summary.json",
    "experiment.toml",
    "metrics.parquet",
    "events.jsonl",
    "report.html",
    PICTURES,
    TIMELINE,
    TRACE,
)


def run_folder(out: Path | None, name: str) -> Path:
    """Make the folder of a run (default ``runs/NAME-TIME``). ConfigError where it cannot be written to."""
    if out is None:
        time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{name}-{time}"
        number = 1
        while out.exists():
            number += 1
            out = Path("runs") / f"{name}-{time}-{number}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
        models, logs = (out / "models").glob("*.safetensors"), (out / LINEAGE).glob("*.jsonl")
        for stale in [*map(out.joinpath, _FILES), *models, *logs]:
            stale.unlink(missing_ok=True)  # what an earlier run left must not pass for this one's
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written to: {error.strerror or error}") from None
    return out
