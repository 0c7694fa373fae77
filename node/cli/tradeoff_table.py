"""A trade-off study in one table, for the terminal: a row for each cell, mean and 95 % interval over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from node.cli.figures import size
from node.cli.tradeoff import Cell, Study

_UTILITY = {
    "own_accuracy": "own acc",
    "own_accuracy_at_fixed_bytes": "at bytes",
    "gain_over_dpsgd": "- D-PSGD",
    "gain_over_local": "- local",
    "worst_group_accuracy": "worst grp",
    "fair_accuracy": "fair acc",
}
_LEAKAGE = {
    "message_auc": "msg AUC",
    "final_auc": "final AUC",
    "final_auc_majority": "majority",
    "final_auc_minority": "minority",
    "message_tpr_1pct": "msg TPR1%",
    "final_tpr_1pct": "final TPR1%",
}
_PAIRS = {"epsilon_pair_mean": "pairs", "epsilon_pair_max": "worst pair"}
_UNKNOWN = "–"


def lines(study: Study) -> Iterator[str]:
    """The table, in two parts with the same rows, each narrow enough for a terminal; then what its words mean."""
    own = list(dict.fromkeys(cell.first.meaning for cell in study.cells if cell.first.meaning))
    pairs = list(dict.fromkeys(cell.first.pair_meaning for cell in study.cells if cell.first.pair_meaning))
    meanings = [*own, *pairs]
    yield from _part(study.cells, ["seeds", *_UTILITY.values(), "bytes"], [_utility(cell) for cell in study.cells])
    yield ""
    rows = [_leakage(cell, meanings) for cell in study.cells]
    yield from _part(study.cells, ["epsilon", *_PAIRS.values(), *_LEAKAGE.values()], rows)
    yield ""
    yield "own acc: of final models, on each node's own kind of samples; ±: 95 % interval over seeds (Student's t)"
    yield f"at bytes: the same when all nodes together have sent {size(study.fixed_bytes)}"
    yield "msg, final: membership inference on models sent and models kept; AUC 0.5 is blind guessing"
    for number, meaning in enumerate(meanings):
        what = "the largest of all nodes" if meaning in own else "mean over pairs of nodes, and the worst pair"
        yield f"epsilon [{_letter(number)}]: {what}, {meaning}"


def _part(cells: Sequence[Cell], head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    names = ["", *(cell.label for cell in cells)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    left = max(map(len, names))
    for name, row in zip(names, [head, *rows], strict=True):
        yield "  ".join([name.ljust(left), *(cell.rjust(width) for cell, width in zip(row, widths, strict=True))])


def _utility(cell: Cell) -> list[str]:
    sent = cell.mean("bytes_sent")
    told = [_told(cell, figure) for figure in _UTILITY]
    return [str(len(cell.rows)), *told, _UNKNOWN if sent is None else size(sent)]


def _leakage(cell: Cell, meanings: Sequence[str]) -> list[str]:
    row = cell.first
    epsilons = [_epsilon(cell, "epsilon_max", row.meaning, meanings)]
    epsilons += [_epsilon(cell, figure, row.pair_meaning, meanings) for figure in _PAIRS]
    return [*epsilons, *(_told(cell, figure) for figure in _LEAKAGE)]


def _told(cell: Cell, figure: str) -> str:
    found = cell.estimate(figure)
    return _UNKNOWN if found is None else str(found)


def _epsilon(cell: Cell, figure: str, meaning: str, meanings: Sequence[str]) -> str:
    """The largest of all seeds, rounded up, with a letter for what it means."""
    if not meaning:
        return "none"
    most = max(row.figures.get(figure) or 0.0 for row in cell.rows)
    said = f"{math.ceil(most * 100) / 100:.2f}" if math.isfinite(most) else "infinite"
    return f"{said} [{_letter(meanings.index(meaning))}]"


def _letter(number: int) -> str:
    return chr(ord("a") + number)
