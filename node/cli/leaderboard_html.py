"""The leaderboard as one self-contained page: a table that sorts itself, pictures, and what assumptions buy.

The page allows one script, its own, by its hash, and nothing from elsewhere. All names and texts are escaped: some come
from results of others.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from node.cli.bench_orderings import Verdict
from node.cli.leaderboard import Board, Entry
from node.cli.leaderboard_plots import numbered, pictures
from node.cli.leaderboard_privacy import exposed
from node.cli.leaderboard_relaxations import AXES, MEANINGS, relaxations
from node.cli.leaderboard_table import COLUMNS, shown

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const missing = row => key(row) === "";
    const order = (one, two) => missing(one) - missing(two) || (up ? 1 : -1) * (
      isNaN(key(one)) || isNaN(key(two)) ? key(one).localeCompare(key(two)) : key(one) - key(two));
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
"""
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
  script-src 'sha256-{_HASH}'">
<title>One-shot federated learning</title><style>
:root {{ color-scheme: light dark; --soft: #5b6570; --rule: #d5dae0; --other: #8881 }}
@media (prefers-color-scheme: dark) {{ :root {{ --soft: #9aa5b1; --rule: #3a424c }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: CanvasText; background: Canvas; margin: 0 auto; padding: 1rem;
  max-width: 90rem }}
h1 {{ font-size: 1.6rem; margin: .5rem 0 }} h2 {{ font-size: 1.2rem; margin: 2rem 0 .5rem }}
h3 {{ font-size: 1rem; margin: 0 }} figure {{ margin: 0; min-width: 0 }}
.soft, figcaption {{ color: var(--soft); font-size: .85rem }}
.grid {{ display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }}
.grid svg {{ width: 100%; height: auto }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }}
th, td {{ text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap }}
th {{ font-weight: 600; vertical-align: bottom }} .sortable th {{ cursor: pointer; white-space: normal }}
th[aria-sort=ascending]::after {{ content: " ↑" }} th[aria-sort=descending]::after {{ content: " ↓" }}
td.text, th.text {{ text-align: left }} tr.reference, tr.open {{ background: var(--other) }}
.best {{ font-weight: 700 }} .equal {{ text-decoration: underline }}
</style></head><body><main>
"""


def page(board: Board, verdicts: Sequence[Verdict]) -> str:
    """The page; the same board gives the same text."""
    parts = [
        _HEAD,
        "<h1>One-shot federated learning</h1>",
        _section("Leaderboard", _leaderboard(board), _notes(board)),
        _section("What each relaxation buys", _relaxations(board)),
        _section("Pictures", _pictures(board)),
        _section("What uploads give away", _privacy(board)),
        _section("Damage", _damage(board)),
        _section("Orderings", _orderings(verdicts)),
        _section("What did not run", _failures(board)),
        f"<script>{_SCRIPT}</script></main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def write_page(board: Board, verdicts: Sequence[Verdict], path: Path) -> None:
    """Write it."""
    path.write_text(page(board, verdicts), encoding="utf-8", errors="xmlcharrefreplace")


def _section(title: str, *bodies: str) -> str:
    body = "\n".join(body for body in bodies if body)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def _table(header: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    head = "".join(header)
    body = "\n".join(rows)
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _head(text: str, is_text: bool = False) -> str:
    kind = ' class="text"' if is_text else ""
    return f"<th{kind}>{escape(text)}</th>"


def _cell(text: str, value: float | str | None = None, kind: str = "") -> str:
    """A cell, and what it is sorted by: its text, where no value is given."""
    named = f' class="{kind}"' if kind else ""
    shown_as = "" if value is None else escape(str(value))
    data = f' data-value="{shown_as}"' if shown_as or text == "–" else ""
    return f"<td{named}{data}>{escape(text)}</td>"


# Sections


def _leaderboard(board: Board) -> str:
    numbers = numbered(board)
    header = [_head("#"), _head("entrant", True), _head("assumes", True), _head("rank"), _head("mean accuracy %")]
    header += [*map(_head, board.main), *(_head(column.name) for column in COLUMNS)]
    rows = [_row(board, entry, numbers[entry.name]) for entry in board.entries]
    return _table(header, rows, ' class="sortable"')


def _row(board: Board, entry: Entry, number: int) -> str:
    mean = board.mean(entry.name)
    mark = "best" if entry.is_best else "equal" if entry.is_equal else ""
    name = f"{entry.name} (open)" if entry.division == "open" else entry.name
    cells = [
        _cell(str(number)),
        _cell(name, kind="text"),
        _cell(entry.assumptions or "reference", kind="text"),
        _cell("–" if entry.rank is None else f"{entry.rank:.2f}", entry.rank),
        _cell(shown(mean, "%"), mean, mark),
    ]
    for block in board.main:
        spread = entry.accuracy.get(block)
        cells.append(_cell("–") if spread is None else _cell(spread.percent(), spread.mean))
    for column in COLUMNS:
        value = entry.figures.get(column.figure)
        cells.append(_cell(shown(value, column.unit), value))
    return f'<tr class="{entry.division}">{"".join(cells)}</tr>'


def _notes(board: Board) -> str:
    text = (
        "Accuracy on the global test set, mean ± standard deviation over seeds (none for a single seed); other figures "
        "are means over the same settings. Rank: mean over settings among the closed division, which trains the same "
        "local models. Bold: best of those that assume the same; underlined: not significantly worse (Wilcoxon, Holm, "
        "5 %). dir[class]: each class is divided among clients by a Dirichlet distribution. FLOPs of clients and "
        "aggregator are what virtual devices of 1 GFLOP/s take time for. Peaks: bytes of tensors alive at once, as "
        "measured (iid, seed 0) at the client with most samples and at the aggregator. Lines of reference and results "
        "of others (open) have no rank. A heading sorts."
    )
    return f'<p class="soft">{escape(text)}</p>'


def _relaxations(board: Board) -> str:
    found = relaxations(board)
    if not found:
        return ""
    rows = []
    for each in found:
        gain = "" if not each.gain else f"{100 * each.gain:+.1f}"
        cells = [AXES[each.axis][0], f"{each.level} {MEANINGS[each.level]}", each.best]
        text = "".join(_cell(cell, kind="text") for cell in cells)
        rows.append(f"<tr>{text}{_cell(shown(each.accuracy, '%'))}{_cell(gain)}</tr>")
    header = [_head(name, True) for name in ("axis", "up to", "best entrant")] + [_head("accuracy %"), _head("gain")]
    note = "The best mean accuracy of all ranked entrants that assume no more than this of one axis, the others free."
    return _table(header, rows) + f'<p class="soft">{escape(note)}</p>'


def _pictures(board: Board) -> str:
    drawn = "".join(
        f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for title, svg, caption in pictures(board)
    )
    return f'<div class="grid">{drawn}</div>' if drawn else ""


_MISSING = ("drop", "owner", "deadline")


def _damage(board: Board) -> str:
    """Accuracy where clients are missing or lie, beside what it is where all is well."""
    blocks = {block: setting.damage for block, setting in board.settings.items() if setting.damage}
    missing = [block for block, damage in blocks.items() if damage.startswith(_MISSING)]
    panels = ("Clients are missing", missing), ("Clients lie", [block for block in blocks if block not in missing])
    tables = "".join(f"<h3>{title}</h3>{_damaged(board, hit)}" for title, hit in panels if hit)
    note = (
        "Accuracy %, over the seeds that all of these settings have. Who is dropped, or lies, is drawn by the seed; an "
        "owner is who holds the largest share of any class. A deadline is a percentile of the times at which clients "
        "have uploaded; devices are alike, so that who has most samples is late. over-claim: a hundred times the "
        "samples that one has; capped: the same, and nobody is believed to have more than three times a fair share."
    )
    return f'{tables}<p class="soft">{escape(note)}</p>' if tables else ""


def _damaged(board: Board, blocks: Sequence[str]) -> str:
    whole = [block for block in board.main if any(other.startswith(f"{block},") for other in blocks)]
    rows = []
    for name in board.names:
        means = board.paired(name, [*whole, *blocks])
        if any(mean is not None for mean in means[len(whole) :]):
            cells = "".join(_cell(shown(mean, "%"), mean) for mean in means)
            rows.append(f"<tr>{_cell(name, kind='text')}{cells}</tr>")
    return _table([_head("entrant", True), *map(_head, (*whole, *blocks))], rows, ' class="sortable"')


def _privacy(board: Board) -> str:
    """Accuracy, leakage and epsilon side by side."""
    header = [_head("entrant", True), _head("where", True), _head("accuracy %"), _head("AUC %"), _head("interval")]
    header += [_head("TPR at 1 % FPR"), _head("interval"), _head("epsilon"), _head("remark", True)]
    rows = []
    for each in exposed(board):
        cells = [_cell(each.entrant, kind="text"), _cell(each.block, kind="text")]
        cells.append(_cell(shown(each.accuracy, "%"), each.accuracy))
        for rate, interval in ((each.auc, each.auc_interval), (each.tpr, each.tpr_interval)):
            cells.append(_cell(shown(rate, "%"), rate))
            cells.append(_cell("–" if interval is None else " to ".join(shown(end, "%") for end in interval)))
        cells += [_cell(shown(each.epsilon, ""), each.epsilon), _cell(each.remark, kind="text")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return ""
    note = (
        "Membership inference on what crosses to the aggregator, at seed 0: models by the loss on each record, samples "
        "by the distance to it; statistics beside a model are not attacked. AUC 50 % tells nothing; no TPR where fewer "
        "than 100 records are no members. Intervals: 95 % of resamples of records. Epsilon: of single records, at "
        "delta 1e-5, of the client that spends most; all clients train once, by DP-SGD."
    )
    return _table(header, rows, ' class="sortable"') + f'<p class="soft">{escape(note)}</p>'


def _orderings(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        values = list(verdict.differences.values())
        mean = f"{sum(values) / len(values):.1f}" if values else "–"
        cells = [verdict.claim, verdict.place, str(verdict.bound)]
        text = "".join(_cell(cell, kind="text") for cell in cells)
        rows.append(f"<tr>{text}{_cell(mean)}{_cell(verdict.status, kind='text')}</tr>")
    header = [_head(name, True) for name in ("claim", "where", "must be (points)")] + [_head("mean"), _head("", True)]
    return _table(header, rows) if rows else ""


def _failures(board: Board) -> str:
    rows = []
    for record in board.failed:
        setting = record["setting"]
        place = f"{setting['data']} {setting['partition']} N={setting['clients']} seed {setting['seed']}"
        place += f" {setting['damage']}"
        cells = (record["entrant"], place, record["error"] or record["status"])
        rows.append(f"<tr>{''.join(_cell(cell, kind='text') for cell in cells)}</tr>")
    return _table([_head(name, True) for name in ("entrant", "where", "why")], rows) if rows else ""
