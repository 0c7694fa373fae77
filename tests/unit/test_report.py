"""Run folders read back, reduced to curves, and told in one HTML file or a terminal table."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from node import topology
from node.cli import plots
from node.cli.figures import comparison_table
from node.cli.report import write_report
from node.cli.runs import POINTS, Run, Samples, disagreement, load_run, same_experiment
from node.config import TopologySection
from node.errors import ConfigError
from node.usage import Usage

NAN, INF = float("nan"), float("inf")


# Made-up runs


@dataclass
class Recipe:
    """What a made-up run folder holds; every node records accuracy, loss and bytes in every round."""

    nodes: int = 4
    rounds: int = 5
    clock: str = "virtual"
    name: str = "digits-gossip"
    protocol: str = "dpsgd"
    status: str = "finished"
    error: str | None = None
    toml: str = '[topology]\nkind = "ring"\n'
    recorders: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy", "loss", "bytes_sent")


def rows_of(recipe: Recipe) -> list[tuple[float, int, int, str, float]]:
    """Accuracy climbs to 0.9 and falls with the node's number; each node sends 1,000 bytes a round (running total)."""
    last = recipe.rounds - 1
    rows = []
    for round in range(recipe.rounds):
        for node in range(recipe.nodes if recipe.recorders is None else recipe.recorders):
            accuracy = 0.9 * (round + 1) / (last + 1) - 0.01 * node
            values = {"accuracy": accuracy, "loss": 1 - accuracy, "bytes_sent": 1000.0 * (round + 1)}
            rows += [(round + 1.0 + node / 100, node, round, metric, values[metric]) for metric in recipe.metrics]
    return rows


def write_rows(folder: Path, rows: list[tuple[float, int, int, str, float]]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    types = (pa.float64(), pa.int64(), pa.int64(), pa.string(), pa.float64())
    names = ("time_s", "node", "round", "metric", "value")
    arrays = {name: pa.array(c, type=t) for name, c, t in zip(names, columns, types, strict=True)}
    pq.write_table(pa.table(arrays), folder / "metrics.parquet")


def spread(values: list[float]) -> dict[str, float]:
    array = np.array(values)
    return {"mean": array.mean(), "std": array.std(), "min": array.min(), "max": array.max()}


def write_run(folder: Path, recipe: Recipe) -> Path:
    folder.mkdir(parents=True)
    rows = rows_of(recipe)
    write_rows(folder, rows)
    top = f'name = "digits-gossip"\nseed = 7\nnodes = {recipe.nodes}\nclock = "{recipe.clock}"\n'
    protocol = f"[protocol]\nuse = {json.dumps(recipe.protocol)}\nrounds = {recipe.rounds}\n"
    (folder / "experiment.toml").write_text(f"# hash abc\n{top}{protocol}{recipe.toml}")
    finals = {
        metric: spread([value for *_, round, name, value in rows if name == metric and round == recipe.rounds - 1])
        for metric in recipe.metrics
        if metric != "bytes_sent"
    }
    summary = {
        "schema": 1, "name": recipe.name, "hash": "abc", "clock": recipe.clock, "seed": 7, "nodes": recipe.nodes,
        "rounds": recipe.rounds, "protocol": recipe.protocol, "time_s": recipe.rounds + 0.25, "wall_s": 1.5,
        "events": 1234, "tasks": 567, "batched_calls": 8, "forced_solves": 0, "messages": 4321,
        "bytes_sent": 1000 * recipe.rounds * recipe.nodes, "peak_rss_bytes": 412_000_000, "status": recipe.status,
        "error": recipe.error, "event_hash": None, "metrics": finals, "dpsgd": {"a protocol's own": 1},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | recipe.summary))
    return folder


@pytest.fixture
def make(tmp_path):
    """Writes a run folder from what differs from the recipe, and loads it."""

    def make(folder: str = "run", **changes: Any) -> Run:
        return load_run(write_run(tmp_path / folder, Recipe(**changes)))

    return make


@pytest.fixture
def drawn_page(tmp_path):
    """Writes a report and returns its text."""

    def page(*runs: Run) -> str:
        write_report(runs, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return page


@pytest.fixture
def page(drawn_page, monkeypatch):
    """The same with empty pictures, which are quicker."""
    monkeypatch.setattr(
        plots, "draw", lambda paint, height=3.0, panels=(1.0,): '<svg viewBox="0 0 1 1" role="img"></svg>'
    )
    return drawn_page


@pytest.fixture(scope="module")
def pair_page(tmp_path_factory):
    """The report of one experiment under both clocks, drawn once."""
    folder = tmp_path_factory.mktemp("pair")
    runs = [load_run(write_run(folder / clock, Recipe(clock=clock))) for clock in ("real", "virtual")]
    write_report(runs, folder / "report.html")
    write_report(runs, folder / "again.html")
    return folder


def section(html: str, title: str) -> str:
    found = re.search(rf"<section><h2>{title}</h2>(.*?)</section>", html, re.DOTALL)
    return found.group(1) if found else ""


def words(html: str) -> str:
    """What a reader sees outside pictures."""
    html = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html)))


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def pictures(html: str) -> list[str]:
    return re.findall(r'<svg viewBox="[^"]*" role="img">.*?</svg>', html, re.DOTALL)


def terminal(*runs: Run, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(runs))
    return capture.get()


def samples(*rows: tuple[float, int, int, float]) -> Samples:
    """From (time_s, node, round, value), in any order."""
    time_s, node, round, value = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    return Samples(np.array(time_s, float), np.array(node), np.array(round), np.array(value, float))


# Loading


def test_a_run_is_its_configuration_summary_and_text(make):
    run = make(nodes=6, rounds=3)
    assert (run.config.nodes, run.config.topology.kind, run.config.protocol.options) == (6, "ring", {"rounds": 3})
    assert (run.summary.rounds, run.summary.messages, run.summary.status) == (3, 4321, "finished")
    assert run.toml.startswith("# hash abc")


def test_samples_hold_one_metric_in_the_order_of_time(make):
    got = make(nodes=3, rounds=2).samples("accuracy")
    assert got.node.tolist() == [0, 1, 2, 0, 1, 2]
    assert got.round.tolist() == [0, 0, 0, 1, 1, 1]
    assert got.time_s.tolist() == [1.0, 1.01, 1.02, 2.0, 2.01, 2.02]
    assert got.value == pytest.approx([0.45, 0.44, 0.43, 0.9, 0.89, 0.88])


def test_a_metric_that_nobody_recorded_is_empty(make):
    run = make()
    assert run.samples("drift").value.size == 0
    assert run.course("drift") is None


def test_a_folder_named_like_a_partition_adds_no_column(make):
    assert make("alpha=0.5/node=3").samples("accuracy").node.tolist()[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("text", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_metric_names_may_be_stored_in_any_text_type(make, text):
    run = make()
    path = run.folder / "metrics.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(3, "metric", table["metric"].cast(text)), path)
    assert load_run(run.folder).samples("accuracy").value.size == 20


def test_rows_without_a_value_are_left_out(make):
    run = make(nodes=1)
    write_rows(run.folder, [(1.0, 0, 0, "accuracy", None), (2.0, 0, 1, "accuracy", 0.5)])
    assert run.samples("accuracy").value.tolist() == [0.5]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder; give a folder that 'starling run' wrote"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["experiment.toml", "summary.json", "metrics.parquet"])
def test_a_missing_file_is_named(make, name):
    run = make()
    (run.folder / name).unlink()
    with pytest.raises(ConfigError, match=f"not a run's folder: {name} is missing"):
        load_run(run.folder)


BROKEN = {
    "summary is no json": ("summary.json", "{", "summary.json: cannot be read: Expecting property name"),
    "summary is a list": ("summary.json", "[]", "summary.json: the whole file: "),
    "summary lacks a key": ("summary.json", "{}", "summary.json: name: Field required"),
    "summary is no text": ("summary.json", b"\xff\xfe", "summary.json: cannot be read: 'utf-8' codec"),
    "configuration is no toml": ("experiment.toml", "nodes =", "experiment.toml: cannot be read: Invalid value"),
    "configuration has an unknown key": ("experiment.toml", "nods = 3", "experiment.toml: nods: Extra inputs"),
    "configuration has a wrong value": ("experiment.toml", "nodes = 0", "experiment.toml: nodes: Input should be"),
    "configuration has a deep wrong value": (
        "experiment.toml", '[topology]\nkind = "moebius"', "experiment.toml: topology.kind: Input should be",
    ),
    "metrics are no parquet": ("metrics.parquet", "hello", "metrics.parquet: cannot be read: "),
    "metrics are empty": ("metrics.parquet", b"", "metrics.parquet: cannot be read: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_in_one_line(make, case):
    name, content, message = BROKEN[case]
    run = make()
    (run.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_run(run.folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("clock", "atomic"), ("status", "fine"), ("nodes", "many"), ("metrics", {"accuracy": {"mean": 1.0}})],
)
def test_a_wrong_value_in_the_summary_names_its_key(make, key, value):
    run = make()
    path = run.folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=f"summary.json: {key}"):
        load_run(run.folder)


def test_a_missing_or_wrong_column_is_named(make):
    run = make()
    path = run.folder / "metrics.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("round"), path)
    with pytest.raises(ConfigError, match=r"column 'round' is missing; there must be time_s, node, round"):
        load_run(run.folder)
    pq.write_table(table.set_column(1, "node", table["node"].cast(pa.string())), path)
    with pytest.raises(ConfigError, match="column 'node' holds string, not int64"):
        load_run(run.folder)


def test_a_file_that_breaks_after_loading_is_named(make):
    run = make()
    path = run.folder / "metrics.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)  # the pages; the footer, which loading reads, stays whole
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"metrics\.parquet: cannot be read"):
        load_run(run.folder).samples("accuracy")


# Curves

RECORDS = st.lists(
    st.tuples(st.integers(0, 12).map(float), st.integers(0, 4), st.integers(0, 6), st.floats(-10, 10, allow_nan=False)),
    min_size=1,
    max_size=60,
)


@given(RECORDS)
def test_by_round_is_the_statistics_of_each_round(rows):
    curve = samples(*rows).by_round()
    for i, round in enumerate(sorted({row[2] for row in rows})):
        values = [row[3] for row in rows if row[2] == round]
        assert curve.x[i] == round
        assert curve.mean[i] == pytest.approx(np.mean(values))
        assert (curve.min[i], curve.max[i]) == (min(values), max(values))
        assert curve.p10[i] == pytest.approx(np.percentile(values, 10))
        assert curve.p90[i] == pytest.approx(np.percentile(values, 90))


@given(RECORDS)
def test_over_time_each_node_holds_its_latest_value(rows):
    recorded = samples(*rows)
    curve = recorded.over_time()
    nodes = {row[1] for row in rows}
    expected = []
    for now in sorted({row[0] for row in rows}):
        latest = {}
        for time_s, node, value in zip(recorded.time_s, recorded.node, recorded.value, strict=True):
            if time_s <= now:
                latest[node] = value
        if 2 * len(latest) >= len(nodes):
            expected.append((now, np.mean(list(latest.values()))))
    assert curve.x.tolist() == [now for now, _ in expected]
    assert curve.mean == pytest.approx([mean for _, mean in expected])


@given(RECORDS)
def test_increases_of_running_totals_are_the_amounts(rows):
    recorded = samples(*rows)
    sums: dict[int, float] = {}
    for node, amount in zip(recorded.node, recorded.increases(), strict=True):
        sums[node] = sums.get(node, 0.0) + amount
    last = dict(zip(recorded.node, recorded.value, strict=True))
    assert sums == pytest.approx(last, abs=1e-9)


def test_final_is_the_value_of_the_last_round_even_if_it_came_early():
    nodes, values = samples((3.0, 5, 0, 0.1), (2.0, 5, 1, 0.7), (9.0, 2, 4, 0.4)).final()
    assert nodes.tolist() == [2, 5]
    assert values.tolist() == [0.4, 0.7]


def test_a_curve_starts_when_half_of_the_nodes_have_recorded():
    curve = samples((1.0, 0, 0, 0.1), (2.0, 1, 0, 0.3), (3.0, 2, 0, 0.5), (4.0, 3, 0, 0.7)).over_time()
    assert curve.x.tolist() == [2.0, 3.0, 4.0]


def test_long_runs_are_thinned_to_a_bounded_number_of_points():
    rows = [(float(t), 0, t, float(t)) for t in range(5000)]
    rounds, times = samples(*rows).by_round(), samples(*rows).over_time()
    assert rounds.x.size == times.x.size == POINTS
    assert (rounds.x[0], rounds.x[-1], times.x[0], times.x[-1]) == (0, 4999, 0, 4999)
    assert rounds.mean.tolist() == rounds.x.tolist()
    assert times.mean.tolist() == np.floor(times.x).tolist()  # the latest value, never one between two


def test_values_that_are_no_numbers_are_counted_and_left_out(make):
    run = make(nodes=2)
    rows = [(1.0, 0, 0, "accuracy", 0.5), (1.0, 1, 0, "accuracy", NAN), (2.0, 0, 1, "accuracy", INF)]
    write_rows(run.folder, rows)
    course = run.course("accuracy")
    assert course is not None
    assert course.left_out == 2
    assert course.nodes.tolist() == [0]
    assert course.final.tolist() == [0.5]


def test_nothing_but_values_that_are_no_numbers_is_no_course(make):
    run = make(nodes=1)
    write_rows(run.folder, [(1.0, 0, 0, "accuracy", NAN)])
    assert run.course("accuracy") is None


# Bytes


def bytes_rows(values: dict[int, list[float]]) -> list[tuple[float, int, int, str, float]]:
    return [(r + 1.0, node, r, "bytes_sent", v) for node, vs in values.items() for r, v in enumerate(vs)]


@pytest.mark.parametrize(
    "recorded",
    [
        pytest.param({0: [10, 20, 30], 1: [5, 5, 5]}, id="what each round sent"),
        pytest.param({0: [10, 30, 60], 1: [5, 10, 15]}, id="running totals"),
    ],
)
def test_bytes_add_up_whether_recorded_by_round_or_as_totals(make, recorded):
    run = make(nodes=2, summary={"bytes_sent": 75})
    write_rows(run.folder, bytes_rows(recorded))
    sent = run.sent_until(np.array([0.5, 1.0, 2.5, 99.0]))
    assert sent is not None
    assert sent.tolist() == [0, 15, 40, 75]


def test_bytes_that_nobody_recorded_are_unknown(make):
    assert make(metrics=("accuracy",)).sent_until(np.array([1.0])) is None


# Comparing


@pytest.mark.parametrize(
    ("toml", "same"),
    [
        ('[topology]\nkind = "ring"\n', True),
        ('[topology]\nkind = "ring"\n[executor]\nkind = "batched"\n', True),
        ('[topology]\nkind = "ring"\n[network]\nlatency_s = 0.5\n[devices]\nseconds_per_sample = 1.0\n', True),
        ('[topology]\nkind = "ring"\n[record]\nmodels = true\n', True),
        ('[topology]\nkind = "full"\n', False),
        ('[topology]\nkind = "ring"\n[training]\nlr = 0.2\n', False),
        ('[topology]\nkind = "ring"\n[[mods]]\nuse = "a:B"\n', False),
    ],
)
def test_the_same_experiment_is_the_same_whatever_clock_devices_and_executor(make, toml, same):
    assert same_experiment(make("a", clock="real"), make("b", toml=toml)) is same


def test_disagreement_is_empty_only_for_equal_bits(make):
    real, simulated = make("a", clock="real"), make("b")
    assert disagreement("accuracy", real, simulated) == ""
    rows = rows_of(Recipe())
    last = max(i for i, row in enumerate(rows) if row[3] == "accuracy")
    rows[last] = (*rows[last][:4], np.nextafter(rows[last][4], 1))
    write_rows(simulated.folder, rows)
    assert disagreement("accuracy", real, simulated) == "accuracy differs on 1 of 4 nodes, by at most 1.11e-16"
    assert disagreement("loss", real, simulated) == ""


def test_equal_values_that_are_no_numbers_agree(make):
    real, simulated = make("a", clock="real"), make("b")
    for run in (real, simulated):
        write_rows(run.folder, [(1.0, 0, 0, "loss", NAN)])
    assert disagreement("loss", real, simulated) == ""


def test_other_nodes_disagree(make):
    text = disagreement("accuracy", make("a", recorders=4), make("b", recorders=3))
    assert text == "accuracy was recorded by other nodes (4 and 3 of them)"


def test_a_metric_of_the_whole_run_is_compared_by_the_summaries(make):
    figure = {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5}
    one = make("a", summary={"metrics": {"consensus": figure}})
    same = make("b", summary={"metrics": {"consensus": figure}})
    other = make("c", summary={"metrics": {"consensus": figure | {"mean": 0.6}}})
    assert disagreement("consensus", one, same) == ""
    assert disagreement("consensus", one, other) == "consensus differs"


# Pictures


def parse(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))


CURVE = samples(*[(float(t), n, t, t / 10 + n / 100) for t in range(9) for n in range(5)]).by_round()
POINT = samples((1.0, 0, 0, 0.5)).by_round()
VALUES = np.linspace(0.2, 0.9, 40)
DRAWINGS = {
    "lines": lambda: plots.lines([CURVE], "round", "accuracy"),
    "lines of many runs": lambda: plots.lines([CURVE, None, CURVE, POINT], "round", "accuracy"),
    "lines over bytes": lambda: plots.lines([CURVE], "sent", "accuracy", "B"),
    "one point": lambda: plots.lines([POINT], "round", "accuracy"),
    "histogram": lambda: plots.histogram(VALUES, "final accuracy"),
    "strips": lambda: plots.strips([VALUES, None, VALUES / 2], "final accuracy"),
    "network": lambda: plots.network("regular", 4, [(0, 1), (1, 2), (2, 3)], {0: 0.1, 2: 0.9}, "a", directed=False),
    "arrows": lambda: plots.network("one-peer", 3, [(0, 1), (1, 2), (2, 0)], {0: 0.1}, "a", directed=True),
    "no edge": lambda: plots.network("full", 1, [], {}, "a", directed=False),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_wellformed_themed_scalable_and_the_same_every_time(name):
    picture = DRAWINGS[name]()
    assert parse(picture).attrib.keys() == {"viewBox", "role"}  # no size of its own: the page gives one
    assert picture == DRAWINGS[name]()
    assert "http" not in picture
    assert "<?xml" not in picture
    assert "#123456" not in picture
    assert "#fedcba" not in picture


def test_text_takes_the_pages_colour_and_can_be_read_as_text():
    texts = [element for element in parse(DRAWINGS["lines"]()).iter() if element.tag == "text"]
    assert {"round", "accuracy"} <= {element.text for element in texts}
    assert all("fill: currentColor" in element.attrib["style"] for element in texts)


def test_a_band_is_drawn_for_few_runs_only():
    def bands(runs: int) -> int:
        return plots.lines([CURVE] * runs, "round", "accuracy").count("fill-opacity: 0.22")

    assert [bands(runs) for runs in (1, 3, 4)] == [1, 3, 0]


def test_a_run_keeps_its_colour_when_another_has_nothing_to_show():
    assert "#e69f00" in plots.lines([None, CURVE], "round", "accuracy")
    assert "#e69f00" in plots.strips([None, VALUES], "accuracy")
    assert "#e69f00" in plots.swatch(1)


def test_thirty_runs_have_thirty_looks():
    assert len({plots.swatch(index) for index in range(30)}) == 30


def test_the_x_axis_counts_bytes_in_larger_units():
    curve = samples(*[(float(t), 0, t * 1_000_000, 0.5) for t in range(5)]).by_round()
    assert ">4 MB<" in plots.lines([curve], "sent", "accuracy", "B")


def test_dollars_and_markup_in_a_label_are_text():
    picture = plots.histogram(VALUES, "$x_1$ <b> & more")
    assert "$x_1$ <b> & more" in {element.text for element in parse(picture).iter()}


KINDS = ("ring", "torus", "regular", "exponential", "one-peer", "erdos-renyi", "full", "star", "random-regular")


@pytest.mark.parametrize("kind", KINDS)
def test_every_topology_can_be_drawn(kind):
    graph = topology.build(TopologySection(kind=kind), 16, 3)
    picture = plots.network(graph.kind, 16, graph.edges(0), {3: 0.5, 4: 0.6}, "a", directed=graph.directed)
    assert picture.count("Canvas") == 14  # nodes without a value are hollow


def test_a_graph_in_pieces_can_be_drawn():
    assert parse(plots.network("random-regular", 4, [(0, 1), (2, 3)], {}, "a", directed=False)) is not None


def test_equal_values_need_no_colour_scale():
    def labels(values: dict[int, float]) -> set[str | None]:
        picture = plots.network("ring", 3, [(0, 1), (1, 2), (0, 2)], values, "final accuracy", directed=False)
        return {element.text for element in parse(picture).iter()}

    assert "final accuracy" in labels({0: 0.5, 1: 0.6})
    assert "final accuracy" not in labels({0: 0.5, 1: 0.5})


# The report of one run


def test_the_outcome_in_words(make, page):
    text = words(page(make(clock="real", nodes=16, rounds=30)))
    assert "16 real processes reached 0.825 mean test accuracy in 30 rounds, 30.2 s." in text


def test_a_simulation_tells_virtual_time(make, page):
    assert "4 simulated nodes reached 0.885 mean test accuracy in 5 rounds, 5.25 s of virtual time." in words(
        page(make())
    )


def test_one_of_a_kind_is_told_in_the_singular(make, page):
    run = make(nodes=1, rounds=1, clock="real", toml='[topology]\nkind = "full"\n')
    assert "1 real process reached 0.900 mean test accuracy in 1 round, 1.25 s." in words(page(run))


def test_a_run_without_accuracy_just_finished(make, page):
    html = page(make(metrics=("loss",)))
    assert "4 simulated nodes finished 5 rounds, 5.25 s of virtual time." in words(html)
    assert "Accuracy over rounds" not in html
    assert "Loss over rounds" in html


def test_a_failed_run_says_so_and_why(make, page):
    html = page(make(status="failed", error="Deadlock: nobody can wake\n node 1 waits for Model"))
    assert 'class="outcome bad"' in html
    text = words(html)
    assert "The run of 4 simulated nodes failed after 5.25 s of virtual time." in text
    assert "Mean test accuracy until then: 0.885." in text
    assert "Deadlock: nobody can wake node 1 waits for Model" in text


def test_a_run_interrupted_before_anything_was_measured(make, page):
    run = make(status="interrupted", clock="real", metrics=(), summary={"bytes_sent": 0})
    text = words(page(run))
    assert "The run of 4 real processes was interrupted after 5.25 s. What was measured so far is below." in text
    assert "until then" not in text
    assert "No accuracy and no loss was recorded." in text


def test_key_figures_are_told_with_their_units(make, page):
    figures = dict(row for row in cells(section(page(make()), "Key figures")) if len(row) == 2)
    assert figures["accuracy"] == "0.885 ± 0.01118 (0.87 to 0.9)"
    assert figures["time"] == "5.25 s"
    assert figures["messages"] == "4,321"
    assert figures["bytes sent"] == "20 kB"
    assert figures["peak memory"] == "412 MB"
    assert list(figures).index("accuracy") < list(figures).index("loss")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.01234, "0.0123 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (5400.0, "90.0 min"),
     (7200.0, "2.0 h"), (172800.0, "2.0 days")],
)  # fmt: skip
def test_durations_are_told_in_readable_units(make, page, seconds, text):
    figures = dict(
        row for row in cells(section(page(make(summary={"time_s": seconds})), "Key figures")) if len(row) == 2
    )
    assert figures["time"] == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1.5e9, "1.5 GB"), (2e15, "2000 TB")]
)
def test_bytes_are_told_in_readable_units(make, page, size, text):
    run = make(summary={"peak_rss_bytes": int(size)})
    assert ["peak memory", text] in cells(section(page(run), "Key figures"))


def test_a_mean_that_is_not_a_number_is_a_dash(make, page):
    figure = {"mean": None, "std": None, "min": None, "max": 1.0}
    html = page(make(summary={"metrics": {"accuracy": figure}}))
    assert ["accuracy", "– ± – (– to 1)"] in cells(section(html, "Key figures"))
    assert "4 simulated nodes finished 5 rounds" in words(html)


def test_every_plot_of_a_usual_run_is_there(make, page):
    learning = section(page(make()), "Learning")
    titles = re.findall(r"<h3>(.*?)</h3>", learning)
    assert titles == [
        "Accuracy over rounds", "Accuracy over time", "Loss over rounds", "Loss over time", "Accuracy over bytes",
        "Spread over nodes",
    ]  # fmt: skip
    assert len(pictures(learning)) == len(titles)
    assert 'class="legend"' not in learning  # one run needs none


def test_what_was_not_recorded_is_not_plotted(make, page):
    html = page(make(metrics=("accuracy",)))
    assert "Accuracy over bytes" not in html
    assert "Loss over" not in html


def test_a_server_that_alone_records_has_no_spread(make, page):
    assert "Spread over nodes" not in page(make(recorders=1))


def test_values_left_out_are_counted(make, page):
    run = make(nodes=2)
    write_rows(run.folder, [(1.0, 0, 0, "loss", NAN), (1.0, 1, 0, "loss", 2.0), (2.0, 1, 1, "loss", INF)])
    assert "2 recorded values left out: infinite or not a number." in words(page(run))


REACHED = {
    "time_to_accuracy_s": {"0.5": 3.03, "0.95": None, "0.9": 90.0},
    "bytes_to_accuracy": {"0.5": 12_000.0, "0.95": None, "0.9": None},
    "time_to_accuracy_worst_decile_s": {"0.5": 4.0, "0.95": None, "0.9": None},
    "bytes_to_accuracy_worst_decile": {"0.5": 14_000.0, "0.95": None, "0.9": None},
}


def test_time_and_bytes_to_accuracy(make, page):
    table = cells(section(page(make(summary=REACHED)), "Time and bytes to accuracy"))
    assert [row[1:] for row in table[1:]] == [
        ["0.5", "3.03 s", "12 kB", "4 s", "14 kB"],
        ["0.9", "90.0 s", "–", "not reached", "–"],
        ["0.95", "not reached", "–", "not reached", "–"],
    ]


def test_targets_of_several_runs_stand_side_by_side(make, page):
    other = {"time_to_accuracy_s": {"0.5": 2.0}, "bytes_to_accuracy": {"0.5": 8_000.0}}
    html = page(make("a", name="one", summary=REACHED), make("b", name="two", summary=other), make("c", name="old"))
    table = cells(section(html, "Time and bytes to accuracy"))
    assert [row[:4] for row in table[1:3]] == [["one", "0.5", "3.03 s", "12 kB"], ["two", "0.5", "2 s", "8 kB"]]
    assert [row[0] for row in table[3:]] == ["one", "one"]


def test_no_accuracy_no_targets(make, page):
    assert "Time and bytes to accuracy" not in page(make(summary=REACHED, metrics=("loss",)))
    assert "Time and bytes to accuracy" not in page(make("b"))


# What nodes did, and what it took

USAGE = {
    "device_hours": {"total": 12.5, "lost": 0.25, "discarded": 1.0},
    "online_hours": 50.0,
    "utilisation": {"mean": 0.25, "min": 0.1, "max": 1.0},
    "shares": {"training": 0.25, "sending": 0.125, "waiting": 0.5, "offline": 0.125},
}
GRAPH = {
    "recorded": 1300, "solved": 1270, "skipped": 41, "discarded_trainings": 30, "batched_calls": 8,
    "mean_batch": 158.75, "forced_solves": 2, "forced_s": 0.5,
    "peak_resident_bytes": 2_000_000, "spilled_bytes": 0, "unspilled_bytes": 0, "kernel": "stacked",
}  # fmt: skip


def watched(run, nodes=4, end_s=8.0):
    """Gives the run a picture: every node trains twice as long as the one before it."""
    usage = Usage(nodes)
    for node in range(nodes):
        usage.trained(node, 0.0, end_s / 2 ** (nodes - node))
        usage.sent(node, end_s / 2, end_s * 0.75)
    usage.close(end_s)
    usage.picture().write(run.folder / "timeline.parquet")
    return run


def test_device_hours_are_key_figures(make, page):
    figures = dict(row for row in cells(section(page(make(summary={"usage": USAGE})), "Key figures")) if len(row) == 2)
    assert figures["device hours"] == "12.5 (0.25 lost, 1 discarded)"
    assert figures["online hours"] == "50"
    assert figures["utilisation"] == "25.0% (10.0% to 100.0%)"
    assert "device hours" not in page(make("b"))


def test_device_hours_are_compared(make, page):
    more = USAGE | {"device_hours": {"total": 25.0, "lost": 0.0, "discarded": 0.0}}
    html = page(make("a", name="one", summary={"usage": USAGE}), make("b", name="two", summary={"usage": more}))
    rows = {row[0]: row[1:] for row in cells(section(html, "Comparison"))}
    assert rows["device hours"][1] == "25 (0 lost, 0 discarded) (+100.0%)"


def test_counters_of_the_compute_graph_have_a_table(make, page):
    table = dict(cells(section(page(make(summary={"graph": GRAPH})), "Computation"))[1:])
    assert table["tasks recorded"] == "1,300"
    assert (table["tasks never solved"], table["updates discarded, never trained"]) == ("41", "30")
    assert table["tasks in a batch"] == "158.8"
    assert table["time in forced solves"] == "0.5 s"
    assert table["values in memory, at most"] == "2 MB"
    assert table["kernel"] == "stacked"
    assert "Computation" not in page(make("b"))


def test_counters_that_a_run_lacks_are_left_out(make, page):
    table = cells(section(page(make(summary={"graph": {"recorded": 5, "kernel": None}})), "Computation"))
    assert table == [["", "digits-gossip"], ["tasks recorded", "5"]]


def test_the_timeline_is_drawn_with_its_shares(make, drawn_page):
    html = section(drawn_page(watched(make(summary={"usage": USAGE}))), "What nodes did when")
    (picture,) = pictures(html)
    assert picture.count("data:image/png;base64,") == 1
    assert {"training", "sending", "waiting", "offline"} <= set(re.findall(r">([a-z]+)</text>", picture))
    assert "training 25.0%, sending 12.5%, waiting 50.0%, offline 12.5%" in words(html)


def test_a_page_with_a_timeline_holds_nothing_from_elsewhere(make, drawn_page):
    html = drawn_page(watched(make(summary={"usage": USAGE})))
    links = {value for name, value in check(html).attributes if name == "xlink:href"}
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html


def test_no_picture_no_section(make, page):
    assert "What nodes did when" not in page(make())


def test_only_the_first_timelines_are_drawn(make, page):
    html = section(page(*(watched(make(f"r{i}", rounds=1)) for i in range(7))), "What nodes did when")
    assert len(pictures(html)) == 6
    assert "The first 6 runs are drawn." in words(html)


def test_a_broken_timeline_is_named(make):
    run = make()
    (run.folder / "timeline.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"timeline\.parquet: cannot be read"):
        run.timeline()


def test_the_busiest_node_is_on_top_and_named(make):
    picture = plots.activities(watched(make()).timeline())
    nodes = [element.text for element in parse(picture).iter() if element.tag == "text" and element.text in "0123"]
    assert nodes[-4:] == ["3", "2", "1", "0"]


@pytest.mark.parametrize("nodes", [10, 10_000])
def test_a_timeline_is_small_and_the_same_every_time_whatever_the_nodes(nodes):
    usage = Usage(nodes)
    rng = np.random.default_rng(4)
    for i, start in enumerate(np.sort(rng.random(30_000) * 100).tolist()):
        usage.trained(i % nodes, start, start + 1.0)
    usage.close(100.0)
    picture = plots.activities(usage.picture())
    assert len(picture) < 150_000
    assert picture == plots.activities(usage.picture())
    assert ("10,000 nodes in 500 groups" in picture) is (nodes == 10_000)
    assert parse(picture).attrib.keys() == {"viewBox", "role"}


def test_the_configuration_is_folded_away_as_it_was_written(make, page):
    run = make()
    html = section(page(run), "Configuration")
    assert html.count("<details>") == 1
    assert run.toml in unescape(html)


# Topology in the report


def test_the_topology_is_drawn_with_its_kind(make, page):
    html = section(page(make()), "Topology")
    assert len(pictures(html)) == 1
    assert "ring: 4 edges." in words(html)


def test_a_fresh_topology_says_which_round_is_drawn(make, page):
    html = section(page(make(toml='[topology]\nkind = "random-regular"\ndegree = 2\n')), "Topology")
    assert "This is round 0; the graph changes every round." in words(html)


def test_federated_averaging_is_a_star_whatever_the_topology_says(make, drawn_page):
    html = section(drawn_page(make(protocol="fedavg", nodes=9, recorders=1)), "Topology")
    assert "All traffic passes the server, node 0. Hollow nodes recorded no accuracy." in words(html)
    assert pictures(html)[0].count("Canvas") == 8


def test_too_many_nodes_are_not_drawn(make, page):
    html = section(page(make(nodes=401, rounds=1)), "Topology")
    assert not pictures(html)
    assert "Not drawn: 401 nodes are more than the 400 that a picture can show." in words(html)


def test_too_many_edges_are_not_drawn(make, page):
    html = section(page(make(nodes=100, rounds=1, toml='[topology]\nkind = "full"\n')), "Topology")
    assert not pictures(html)
    assert "Not drawn: 4,950 edges are more than the 4,000 that a picture can show." in words(html)


def test_a_topology_that_cannot_be_built_any_more_is_explained(make, page):
    html = section(page(make(toml='[topology]\nkind = "file"\npath = "/gone/<edges>.txt"\n')), "Topology")
    assert "Not drawn: " in html
    assert "&lt;edges&gt;.txt" in html


# Several runs


def test_several_runs_are_overlaid_with_a_legend(pair_page):
    html = (pair_page / "report.html").read_text()
    learning = section(html, "Learning")
    first = learning[: learning.index("</figure>")]
    assert re.findall(r"</svg>([^<]+)</span>", first) == ["digits-gossip (real)", "digits-gossip (virtual)"]
    assert "#0f83c9" in pictures(first)[0]
    assert "#e69f00" in pictures(first)[0]


def test_the_title_names_every_experiment_once(make, page):
    html = page(make("a", name="one"), make("b", name="two"), make("c", name="one"))
    assert "<title>one, two</title>" in html


def test_differences_are_told_from_the_first_run(make, page):
    other = make("b", name="two", rounds=10, nodes=5, summary={"messages": 0, "seed": 8})
    rows = {row[0]: row[1:] for row in cells(section(page(make("a", name="one"), other), "Comparison"))}
    assert rows["rounds"] == ["5", "10 (+100.0%)"]
    assert rows["accuracy"] == ["0.885 ± 0.01118 (0.87 to 0.9)", "0.88 ± 0.01414 (0.86 to 0.9) (-0.005)"]
    assert rows["messages"] == ["4,321", "0 (-100.0%)"]
    assert rows["events"] == ["1,234", "1,234"]
    assert rows["seed"] == ["7", "8"]


def test_a_difference_from_nothing_is_not_told(make, page):
    html = page(make("a", name="one", summary={"messages": 0}), make("b", name="two"))
    assert ["messages", "0", "4,321"] in cells(section(html, "Comparison"))


def test_a_metric_that_one_run_lacks_is_a_dash(make, page):
    html = page(make("a", name="one", metrics=("loss",)), make("b", name="two"))
    rows = {row[0]: row[1:] for row in cells(section(html, "Comparison"))}
    assert rows["accuracy"] == ["–", "0.885 ± 0.01118 (0.87 to 0.9)"]


def test_only_the_keys_that_differ_are_listed(make, page):
    html = page(make("a", name="one"), make("b", name="two", toml='[topology]\nkind = "ring"\n[training]\nlr = 0.5\n'))
    table = cells(section(html, "Configuration"))
    assert table == [["differing key", "one", "two"], ["training.lr", "0.1", "0.5"]]


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        (({"name": "one"}, {"name": "two"}), ["one", "two"]),
        (({"clock": "real"}, {}), ["digits-gossip (real)", "digits-gossip (virtual)"]),
        (({}, {}), ["digits-gossip (r0)", "digits-gossip (r1)"]),
    ],
)
def test_runs_are_labelled_by_what_tells_them_apart(make, page, changes, labels):
    runs = [make(f"r{i}", **change) for i, change in enumerate(changes)]
    assert cells(section(page(*runs), "Comparison"))[0] == ["", *labels]


def test_runs_in_folders_of_one_name_are_labelled_by_their_paths(make, page):
    runs = [make("x/run"), make("y/run")]
    assert cells(section(page(*runs), "Comparison"))[0] == ["", *(str(run.folder) for run in runs)]


def test_only_the_first_topologies_are_drawn(make, page):
    html = section(page(*(make(f"r{i}", rounds=1) for i in range(7))), "Topology")
    assert len(pictures(html)) == 6
    assert "The first 6 runs are drawn." in words(html)


# Real and simulated


def test_many_runs_are_rows(make, page):
    html = page(*(make(f"r{i}", name=f"run-{i}", rounds=1 + i) for i in range(7)))
    table = cells(section(html, "Comparison"))
    assert len(table) == 8
    assert [row[0] for row in table[1:]] == [f"run-{i}" for i in range(7)]
    rounds = table[0].index("rounds")
    assert [row[rounds] for row in table[1:3]] == ["1", "2 (+100.0%)"]
    differing = cells(section(html, "Configuration"))
    assert differing[0] == ["differing key", "protocol.rounds"]
    assert differing[7] == ["run-6", "7"]


def test_real_and_simulated_lie_side_by_side_and_agree_to_the_last_bit(make, page):
    html = page(make("a", clock="real"), make("b", summary={"time_s": 10.5}))
    found = section(html, "Real and simulated")
    assert {row[0] for row in cells(found)[1:]} == {"accuracy", "rounds", "messages", "bytes sent", "time"}
    assert ["time", "5.25 s", "10.5 s", "+100.0%"] in cells(found)
    assert "Final metrics are equal to the last bit on every node: accuracy, loss." in words(found)


def test_the_last_bit_counts(make, page):
    real, simulated = (
        make("a", clock="real"),
        make("b", toml='[topology]\nkind = "ring"\n[executor]\nkind = "batched"\n'),
    )
    rows = [(*row[:4], row[4] + (1e-9 if row[3] == "loss" else 0)) for row in rows_of(Recipe())]
    write_rows(simulated.folder, rows)
    text = words(section(page(real, simulated), "Real and simulated"))
    assert "Final metrics are not equal to the last bit: loss differs on 4 of 4 nodes, by at most 1e-09." in text
    assert "The executors differ (inline and batched), and promise equality to a tolerance only." in text
    assert "accuracy differs" not in text


def test_a_run_that_did_not_finish_explains_a_difference(make, page):
    real = make("a", clock="real", rounds=5, status="failed", error="gone", recorders=3)
    text = words(section(page(real, make("b")), "Real and simulated"))
    assert "The real run did not finish (failed)." in text


def test_nothing_in_common_is_said(make, page):
    html = page(make("a", clock="real", metrics=()), make("b"))
    assert "There are no final metrics that both runs have." in words(section(html, "Real and simulated"))


@pytest.mark.parametrize("other", [{"clock": "real"}, {"toml": '[topology]\nkind = "full"\n'}, {"rounds": 6}])
def test_runs_that_are_no_pair_are_not_laid_side_by_side(make, page, other):
    assert not section(page(make("a", clock="real"), make("b", **other)), "Real and simulated")


# The page as a whole


class Checker(HTMLParser):
    """Collects tags and attributes, and fails where an element is not closed in order."""

    VOID = frozenset({"meta", "br", "img", "input", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes.update(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_wellformed_and_asks_for_nothing_from_elsewhere(pair_page):
    html = (pair_page / "report.html").read_text()
    seen = check(html)
    assert not seen.seen & {"script", "link", "img", "iframe", "image", "object", "base", "form"}
    assert not {name for name, _ in seen.attributes if name in ("src", "href", "srcset", "action", "onerror")}
    assert all((value or "").startswith("#") for name, value in seen.attributes if name == "xlink:href")
    assert "://" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_fits_a_phone_and_the_dark(make, page):
    html = page(make())
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert "color-scheme: light dark" in html
    assert "prefers-color-scheme: dark" in html
    assert html.count('<div class="wide"><table>') == html.count("<table>")  # wide tables scroll by themselves


def test_the_same_runs_give_the_same_bytes(pair_page):
    assert (pair_page / "report.html").read_bytes() == (pair_page / "again.html").read_bytes()


def test_ids_name_the_same_thing_wherever_they_occur(pair_page):
    definitions: dict[str, str] = {}
    html = (pair_page / "report.html").read_text()
    for definition, name in re.findall(r'(<(?:path|clipPath) id="([^"]*)".*?/>)', html, re.DOTALL):
        assert definitions.setdefault(name, definition) == definition
    assert definitions


EVIL = '</pre><script>alert("1")</script><img src=x onerror=alert(1)> $\\frac$ [bold] \x1b[31m & \ud800'


def test_everything_from_a_folder_is_data(make, drawn_page):
    metric = {"<b>x</b>": {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}}
    changes = {"status": "failed", "error": EVIL, "name": EVIL, "protocol": "<script>:Class"}
    html = drawn_page(
        make("<i>a", summary={"metrics": metric}, **changes),
        make("<i>b", summary={"metrics": metric}, **changes, toml='# </pre><script>\n[data]\nname = "<script>"\n'),
    )
    seen = check(html)
    assert not seen.seen & {"script", "img", "b\x1b", "i"}
    assert not {name for name, _ in seen.attributes if name.startswith("on")}
    assert html.count("&lt;/pre&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") > 4


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="report: no run is given; name at least one folder"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_sixteen_nodes_stay_well_under_a_megabyte(make, drawn_page):
    assert len(drawn_page(make(nodes=16, rounds=30))) < 250_000


def test_the_size_does_not_grow_with_nodes_and_rounds(make, drawn_page):
    nodes, rounds = 400, 300
    run = make(nodes=401, rounds=1)
    round, node = (grid.ravel() for grid in np.meshgrid(np.arange(rounds), np.arange(nodes), indexing="ij"))
    values = np.random.default_rng(5).random(round.size)
    columns = {"time_s": round + values, "node": node, "round": round, "value": values}
    for metric in ("accuracy", "loss"):
        columns["metric"] = pa.array(np.full(round.size, metric, dtype=object))
        pq.write_table(pa.table(columns), run.folder / "metrics.parquet")
        assert len(drawn_page(run)) < 120_000


# The terminal


def test_the_terminal_table_lays_runs_side_by_side(make):
    text = terminal(make("a", clock="real"), make("b", rounds=10))
    header = next(line for line in text.splitlines() if "digits-gossip (real)" in line)
    assert "digits-gossip (virtual)" in header
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if line.count("│") == 4}
    assert [cell.strip() for cell in rows["rounds"]] == ["5", "10"]
    assert rows["accuracy"][0].strip() == "0.885 ± 0.01118 (0.87 to 0.9)"
    wanted = {"name", "clock", "protocol", "nodes", "time", "wall time", "messages", "bytes sent", "peak memory"}
    assert wanted <= rows.keys()


def test_the_terminal_shows_hostile_names_as_text(make):
    text = terminal(make(name="[red]x[/]\x1b[31m"))
    assert "[red]x[/]�[31m" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_loses_no_figure(make):
    text = terminal(make("a", clock="real"), make("b"), width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "0.885" in text
    assert "412 MB" in text


def test_importing_the_report_loads_no_plotting_parquet_or_learning():
    slow = "('matplotlib', 'pyarrow', 'networkx', 'scipy', 'torch', 'zmq')"
    code = f"import sys, node.cli.report; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=200))
def test_any_error_text_survives_the_page(tmp_path_factory, error):
    folder = tmp_path_factory.mktemp("any")
    run = load_run(write_run(folder / "run", Recipe(status="failed", error=error, metrics=(), nodes=401)))
    write_report([run], folder / "report.html")
    html = (folder / "report.html").read_bytes().decode()
    check(html)
    assert unescape("".join(re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)[:-1])) == error
