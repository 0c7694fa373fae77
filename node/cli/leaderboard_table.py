"""The leaderboard in text: for a terminal, as CSV, and as a LaTeX table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from node.cli.figures import size
from node.cli.leaderboard import Board, Entry
from node.experiment.sweep import write_table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "\n": " ",
    }
)


class Column(NamedTuple):
    """A figure of the table."""

    name: str
    figure: str
    unit: str
    """``%``, ``B``, ``GFLOP``, ``kFLOP``, or empty."""
    less_is_better: bool = False


COLUMNS = (
    Column("own distribution", "client_accuracy", "%"),
    Column("worst client", "worst_client", "%"),
    Column("gap closed", "gap_closed", "%"),
    Column("ECE", "ece", "%", True),
    Column("up a client", "up_bytes", "B", True),
    Column("down a client", "down_bytes", "B", True),
    Column("client", "client_flops", "GFLOP", True),
    Column("aggregator", "aggregator_flops", "GFLOP", True),
    Column("aggregator holds", "state_bytes", "B", True),
    Column("peak of a client", "client_peak_bytes", "B", True),
    Column("peak of the aggregator", "aggregator_peak_bytes", "B", True),
    Column("result", "result_bytes", "B", True),
    Column("an answer", "inference_flops", "kFLOP", True),
    Column("leakage AUC", "leakage_auc", "%", True),
)
_SCALE = {"%": 0.01, "GFLOP": 1e9, "kFLOP": 1e3}


def shown(value: float | None, unit: str) -> str:
    """A figure for people."""
    if value is None:
        return "–"
    if unit == "B":
        return size(value)
    scaled = value / _SCALE.get(unit, 1.0)
    return f"{scaled:.1f}" if unit == "%" else f"{scaled:.3g}"


def lines(board: Board) -> Iterator[str]:
    """The table for a terminal: accuracy in % by block, mean ± standard deviation over seeds."""
    keys = [f"[{letter}]" for letter in map(_letter, range(len(board.main)))]
    header = ["", "assumes", "rank", *keys, "mean", "ECE", "up"]
    rows = [header, *([*_left(entry), *_middle(board, entry), *_right(board, entry)] for entry in board.entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        yield "  ".join(
            [*cells, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))]
        ).rstrip()
    yield ""
    yield "  ".join(f"{key} {block}" for key, block in zip(keys, board.main, strict=True))
    yield "* best of those that assume the same, = not significantly worse (Wilcoxon, Holm, 5 %)"


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else str(place)


def _left(entry: Entry) -> list[str]:
    mark = " *" if entry.is_best else " =" if entry.is_equal else ""
    name = f"{entry.name} (open)" if entry.division == "open" else entry.name
    return [name + mark, entry.assumptions or "reference", "–" if entry.rank is None else f"{entry.rank:.2f}"]


def _middle(board: Board, entry: Entry) -> list[str]:
    return [entry.accuracy[block].percent() if block in entry.accuracy else "–" for block in board.main]


def _right(board: Board, entry: Entry) -> list[str]:
    told = [shown(entry.figures.get(figure), unit) for figure, unit in (("ece", "%"), ("up_bytes", "B"))]
    return [shown(board.mean(entry.name), "%"), *told]


def write_csv(board: Board, path: Path) -> None:
    """A row for each entrant: rank, accuracy by block, and means of all other figures over main blocks."""
    figures = dict.fromkeys(figure for entry in board.entries for figure in entry.figures)
    rows = []
    for entry in board.entries:
        row: dict[str, object] = {
            "entrant": entry.name,
            "assumptions": entry.assumptions,
            "division": entry.division,
            "rank": entry.rank,
            "mean_accuracy": board.mean(entry.name),
        }
        for block, spread in entry.accuracy.items():
            row |= {block: spread.mean, f"{block} sd": spread.deviation, f"{block} seeds": spread.seeds}
        rows.append(row | {figure: entry.figures.get(figure) for figure in figures if "/" not in figure})
    write_table(path, rows)


def latex(board: Board) -> str:
    """A table by assumption cell, as LaTeX needs ``booktabs``: best of a cell bold, those that equal it underlined."""
    head = ["", *board.main, "mean"]
    rows = [_latex_row(head), r"\midrule"]
    cells = dict.fromkeys((entry.division, entry.assumptions) for entry in board.entries)
    for place, (division, assumptions) in enumerate(cells):
        title = {"reference": "reference", "open": f"{assumptions} (open)"}.get(division, assumptions)
        rows += [r"\midrule"] if place else []
        rows.append(rf"\multicolumn{{{len(head)}}}{{l}}{{\textit{{{escaped(title)}}}}} \\")
        for entry in board.entries:
            if (entry.division, entry.assumptions) == (division, assumptions):
                rows.append(_latex_entry(board, entry))
    columns = "l" + "r" * (len(head) - 1)
    body = "\n".join(rows)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _latex_entry(board: Board, entry: Entry) -> str:
    mean = escaped(shown(board.mean(entry.name), "%"))
    mark = r"\textbf{%s}" if entry.is_best else r"\underline{%s}" if entry.is_equal else "%s"
    return " & ".join([escaped(entry.name), *map(escaped, _middle(board, entry)), mark % mean]) + r" \\"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """Text as LaTeX shows it, whatever characters it has."""
    return text.translate(_LATEX)
