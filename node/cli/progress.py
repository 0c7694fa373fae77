"""How a run shows that it lives: a bar on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from node.config import ExperimentConfig
from node.record import Recorder

_LINE_EVERY_S = 2.0


class Progress:
    """Shows rounds, accuracy, rate and time left on stderr. Use as a context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, config: ExperimentConfig, quiet: bool) -> None:
        self._name = config.name
        self._nodes = config.nodes
        privacy = config.privacy
        self._meant = f"per {privacy.mechanism}, add-remove, {privacy.view}"
        rounds = config.protocol.options.get("rounds")
        self._rounds = rounds if isinstance(rounds, int) else None
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        self._started_s = self._last_line_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def _start(self) -> None:
        """Begin to draw. Not before there is something to show: the bar has a thread, and nodes are forked without."""
        if self._bar is None and self._console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("round {task.completed}/{task.total}"),
                TextColumn("{task.fields[accuracy]}"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                f"{self._name}, {self._nodes} nodes", total=self._rounds, accuracy="", rate="", state=""
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, time_s: float, recorder: Recorder, state: Mapping[str, int] | None = None) -> None:
        """Show how far the run is. Cheap enough to be called often: it looks at the numbers a few times a second.

        Args:
            time_s: the run's own time.
            state: of a simulation: ``events``, tasks ``recorded`` and ``solved``, ``resident_bytes`` of this process.
        """
        if self._quiet:
            return
        self._start()
        now = time.monotonic()
        every_s = 0.2 if self._bar is not None else _LINE_EVERY_S
        if now - self._last_line_s < every_s:
            return
        self._last_line_s = now
        rounds = recorder.rounds()
        accuracies = recorder.latest("accuracy")
        mean = sum(accuracies.values()) / len(accuracies) if accuracies else None
        accuracy = f"accuracy {mean:.3f}" if mean is not None else ""
        if epsilons := recorder.latest("epsilon"):
            accuracy += f"  epsilon {max(epsilons.values()):.3g} {self._meant}"
        elapsed_s = now - self._started_s
        rate = f"{rounds / max(elapsed_s, 1e-9):.1f} rounds/s"
        told = _told(state) if state else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=rounds, accuracy=accuracy, rate=rate, state=told)
            return
        total = f"/{self._rounds}" if self._rounds else ""
        left = _left(elapsed_s, rounds, self._rounds)
        parts = [f"{self._name}: round {rounds}{total}", accuracy, rate, f"{time_s:.1f} s", told, left]
        sys.stderr.write("  ".join(part for part in parts if part) + "\n")

    def note(self, text: str) -> None:
        """Say something that must not be missed: a node that died, say."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")


def _told(state: Mapping[str, int]) -> str:
    solved = f"{state['solved']:,} of {state['recorded']:,} tasks solved"
    return f"{state['events']:,} events  {solved}  {state['resident_bytes'] / 1e6:,.0f} MB"


def _left(elapsed_s: float, rounds: int, total: int | None) -> str:
    """How long the rest takes if all rounds take as long as those until now."""
    if not total or not rounds:
        return ""
    return f"about {timedelta(seconds=round(elapsed_s * max(total - rounds, 0) / rounds))} left"
