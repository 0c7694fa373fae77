"""Simulate one experiment and write its events to a file: ``python -m node.cli.tape EXPERIMENT FILE [KEY=VALUE]...``.

A process of its own, because a run that depends on Python's hash seed only shows it in another process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from node.errors import StarlingError
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual


def main(experiment: str, tape: str, *overrides: str) -> int:
    """Run and write; 0, or 3 where the run failed."""
    try:
        setup = prepare(load(experiment, overrides, os.environ))
        with Path(tape).open("wb") as file:
            result = run_virtual(setup, lambda time_s, recorder, state: None, sink=file.write)
    except StarlingError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    if result.status != "finished":
        sys.stderr.write(f"{(result.error or result.status).splitlines()[0]}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
