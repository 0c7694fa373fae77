"""``starling testbed``: trains the model and adapters by which selection is judged, once, and says where they are."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from node.errors import ConfigError

_LINE_EVERY_S = 5.0


def prepare_and_tell(out: Path | None, seed: int, as_json: bool) -> None:
    """Prepare the test bed and print its folders and scores; progress goes to stderr."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("the test bed needs a package that is not installed: pip install 'starling-node[serve]'")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: allowed: 0 and above")
    from transformers.utils import logging

    from node.learn.choices import cache_folder
    from node.testbed.preparing import prepare
    from node.testbed.spelling.languages import SERVED

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    bed = prepare(out or cache_folder() / "starling", seed, progress=_Lines())
    if as_json:
        adapters = {language: str(folder) for language, folder in bed.adapters.items()}
        typer.echo(json.dumps({"base": str(bed.base), "adapters": adapters, "scores": bed.scores._asdict()}))
        return
    table = Table("adapter", "language", "base", "this adapter", "best other", title="held-out numbers spelled exactly")
    for language, name in SERVED.items():
        shares = (bed.scores.base[language], bed.scores.right[language], bed.scores.wrong[language])
        table.add_row(language, name, *(f"{share:.2f}" for share in shares))
    Console().print(table)
    typer.echo(f"base: {bed.base}\nadapters: {bed.folder / 'adapters'}")


class _Lines:
    """A line on stderr every few seconds of training."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._last_s = time.monotonic()

    def __call__(self, what: str, step: int, steps: int) -> None:
        if step == steps or time.monotonic() - self._last_s >= _LINE_EVERY_S:
            self._last_s = time.monotonic()
            self._console.print(f"{what}: step {step} of {steps}", highlight=False)
