"""The compute graph: recording, handles, freeing, and giving columns back."""

import gc
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import graph as graph_module
from node.graph import Graph
from node.op import Key, Op, Spec, Static, op
from node.solver import InlineExecutor, Solver
from node.values import Values

NUMBER = Spec((), "float64")


@op
def add(a, b):
    return a + b


@op
def scaled(a, *, by):
    return a * by


def record(graph, op, *inputs, node=0, counter=0, **static):
    return graph.record(graph.call(op, inputs, static), inputs, node, counter)


def solver_of(graph):
    return Solver(graph, InlineExecutor())


# Calls


def test_equal_calls_are_interned():
    graph = Graph(0)
    one, other = graph.constant(1.0, NUMBER), graph.constant(2.0, NUMBER)
    call = graph.call(scaled, [one], {"by": 2.0})
    assert graph.call(scaled, [other], {"by": 2.0}) == call
    assert len(graph.calls) == 1


def test_a_task_keeps_its_counter():
    graph = Graph(0)
    one = graph.constant(1.0, NUMBER)
    ref = record(graph, scaled, one, node=3, counter=17, by=2.0)
    assert graph.counter_of(ref.id) == graph.task_key(ref.id).counter == 17


def test_calls_differ_by_op_arguments_names_arity_and_spec():
    graph = Graph(0)
    small, same, large = (graph.constant(0.0, Spec(shape)) for shape in ((3,), (3,), (4,)))
    calls = [
        graph.call(scaled, [small], {"by": 2.0}),
        graph.call(scaled, [small], {"by": 3.0}),
        graph.call(scaled, [small], {"of": 2.0}),
        graph.call(scaled, [small], {}),
        graph.call(scaled, [large], {"by": 2.0}),
        graph.call(add, [small], {"by": 2.0}),
        graph.call(add, [small, large], {}),
        graph.call(add, [large, small], {}),
        graph.call(add, [small, small], {}),
    ]
    assert len(set(calls)) == len(calls)
    assert len({graph.call(add, pair, {}) for pair in ([small, large], [same, large])}) == 1


def test_a_call_knows_what_it_yields():
    wide: Op = Op("wide", lambda task: None, spec=lambda inputs, static: Spec((len(inputs), static["width"])))
    graph = Graph(0)
    ref = record(graph, wide, graph.constant(0, NUMBER), graph.constant(0, NUMBER), width=7)
    assert ref.spec == Spec((2, 7))
    assert graph.spec_of(ref.id) == Spec((2, 7))


# Recording


def test_tasks_count_up_and_constants_count_down():
    graph = Graph(0)
    start, other = graph.constant(1.0, NUMBER), graph.constant(2.0, NUMBER)
    tasks = [record(graph, add, start, other) for _ in range(3)]
    assert [start.id, other.id] == [-1, -2]
    assert [ref.id for ref in tasks] == [0, 1, 2]
    assert graph.recorded == len(graph) == 3
    assert all(not graph.is_solved(ref.id) for ref in tasks)
    assert graph.is_solved(start.id)


def test_a_task_holds_its_inputs_values_its_arguments_and_its_key():
    graph = Graph(7)
    start = graph.constant(4.0, NUMBER)
    task = graph.task(record(graph, scaled, start, node=3, counter=9, by=2.0).id)
    static: Static = {"by": 2.0}
    assert task == ((4.0,), static, Key(7, 3, 9))


def test_recording_computes_nothing():
    def solve(task):
        raise AssertionError("computed")

    graph = Graph(0)
    ref = record(graph, Op("never", solve, spec=lambda inputs, static: NUMBER))
    assert graph.node_of(ref.id) == 0
    assert graph.op_of(ref.id).name == "never"
    assert list(graph.inputs(ref.id)) == []


# Freeing


def test_a_constant_goes_with_its_last_handle():
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    keep = start
    del start
    graph.drain()
    assert len(graph.values) == 1
    del keep
    graph.drain()
    assert graph.values == {}


def test_a_constant_lives_while_an_unsolved_task_reads_it():
    graph = Graph(0)
    total = record(graph, add, graph.constant(1.0, NUMBER), graph.constant(2.0, NUMBER))
    graph.drain()
    assert len(graph.values) == 2
    assert solver_of(graph).value(total) == 3.0
    assert graph.values == {total.id: 3.0}


def test_a_value_goes_with_its_last_handle_and_last_consumer():
    graph = Graph(0)
    solver = solver_of(graph)
    start = graph.constant(2.0, NUMBER)
    middle = record(graph, scaled, start, by=3.0)
    end = record(graph, scaled, middle, by=5.0)
    solver.value(middle)
    number = middle.id
    del middle
    graph.drain()
    assert graph.is_solved(number)
    assert solver.value(end) == 30.0
    assert not graph.is_solved(number)
    assert graph.values == {start.id: 2.0, end.id: 30.0}


def test_a_chain_of_dead_tasks_goes_at_once_however_long():
    graph = Graph(0)
    ref = graph.constant(1.0, NUMBER)
    for _ in range(20_000):
        ref = record(graph, scaled, ref, by=1.0)
    graph.drain()
    assert len(graph.values) == 1
    del ref
    graph.drain()
    assert graph.values == {}


def test_an_input_that_is_read_twice_is_freed_once():
    graph = Graph(0)
    start = graph.constant(2.0, NUMBER)
    doubled = record(graph, add, start, start)
    del start
    assert solver_of(graph).value(doubled) == 4.0
    assert graph.values == {doubled.id: 4.0}


def test_hold_keeps_a_task_without_handles():
    graph = Graph(0)
    ref = record(graph, scaled, graph.constant(2.0, NUMBER), by=2.0)
    number = ref.id
    graph.hold(number)
    del ref
    graph.drain()
    assert len(graph.values) == 1
    graph.release(number)
    assert graph.values == {}


def test_handles_may_die_in_any_thread():
    """The last handle of a live node's model often dies in its worker thread, while the loop records."""
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    boxes = [[record(graph, scaled, start, by=1.0)] for _ in range(4000)]

    def drop(part):
        for box in part:
            box.clear()

    threads = [threading.Thread(target=drop, args=(boxes[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    kept = [record(graph, scaled, start, by=2.0) for _ in range(2000)]
    for thread in threads:
        thread.join()
    gc.collect()
    graph.drain()
    number = start.id
    del start
    solver_of(graph).solve(kept)
    assert set(graph.values) == {ref.id for ref in kept}
    assert not graph.is_solved(number)


# Counting


def test_what_nobody_needed_is_told_while_its_columns_are_there():
    told = []
    graph = Graph(7, on_skip=lambda i: told.append((graph.op_of(i).name, graph.task_key(i), graph.static_of(i))))
    start = graph.constant(2.0, NUMBER)
    first = record(graph, scaled, start, node=3, counter=8, by=2.0)
    second = record(graph, add, first, start, node=4, counter=9)
    del first
    graph.drain()
    assert (told, graph.skipped) == ([], 0)
    del second
    graph.drain()
    assert told == [(add.name, Key(7, 4, 9), {}), (scaled.name, Key(7, 3, 8), {"by": 2.0})]
    assert (graph.recorded, graph.skipped) == (2, 2)


def test_what_was_solved_was_not_skipped():
    graph = Graph(0)
    start = graph.constant(2.0, NUMBER)
    ref = record(graph, scaled, start, by=2.0)
    solver_of(graph).value(ref)
    del ref, start
    graph.drain()
    assert graph.skipped == 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_every_task_is_solved_shared_skipped_or_still_held(choices, data):
    graph = Graph(0)
    refs = [graph.constant(float(i), NUMBER) for i in range(4)]
    solver = solver_of(graph)
    for i in choices:
        refs[i] = record(graph, add, refs[i], refs[data.draw(st.integers(0, 3))])
        if data.draw(st.booleans()):
            solver.solve([refs[data.draw(st.integers(0, 3))]])
    refs.clear()
    graph.drain()
    assert graph.recorded == solver.solved + solver.deduplicated + graph.skipped == len(choices)


def test_tensors_are_counted_by_their_specs():
    tensor = Spec((5, 2))
    graph = Graph(0)
    start = graph.constant("a tensor", tensor)
    again = graph.constant("a tensor", tensor)
    number = graph.constant(1.0, NUMBER)
    task = record(graph, add, start, start)
    assert [graph.size_bytes(ref.id) for ref in (start, again, number, task)] == [40, 40, 0, 40]
    assert graph.spec_of(start.id) is graph.spec_of(task.id)
    assert [graph.uses(ref.id) for ref in (start, again, task)] == [3, 1, 1]
    assert graph.values.resident_bytes == 40
    assert solver_of(graph).value(task) == "a tensora tensor"
    assert graph.values.resident_bytes == graph.values.peak_resident_bytes == 80


def test_values_may_be_kept_elsewhere():
    values = Values()
    graph = Graph(0, values=values)
    assert graph.values is values


# Retiring


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(graph_module, "_RETIRE", 10)


@pytest.mark.usefixtures("eager")
def test_retiring_gives_columns_back_and_keeps_numbers():
    graph = Graph(0)
    solver = solver_of(graph)
    model = graph.constant(1.0, NUMBER)
    for count in range(1, 101):
        model = record(graph, scaled, model, by=2.0)
        if count % 10 == 0:
            solver.solve([model])
    graph.drain()
    graph.retire()
    assert graph.recorded == 100
    assert len(graph) < 25
    assert solver.value(model) == 2.0**100
    further = record(graph, add, model, model)
    assert further.id == 100
    assert solver.value(further) == 2.0**101


@pytest.mark.usefixtures("eager")
def test_an_old_task_that_is_still_held_keeps_what_is_behind_it():
    graph = Graph(0)
    solver = solver_of(graph)
    start = graph.constant(3.0, NUMBER)
    old = record(graph, scaled, start, by=2.0)
    for _ in range(50):
        solver.value(record(graph, scaled, start, by=5.0))
    graph.drain()
    graph.retire()
    assert len(graph) == 51
    assert solver.value(old) == 6.0
    del old
    graph.drain()
    graph.retire()
    assert len(graph) == 0
    assert solver.value(record(graph, scaled, start, by=7.0)) == 21.0


@pytest.mark.usefixtures("eager")
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=30),
)
def test_four_nodes_of_random_age_retire_in_any_order(steps):
    """Each step replaces one node's model by the sum of two, and may solve it: whatever retires, numbers stay right."""
    graph = Graph(0)
    solver = solver_of(graph)
    refs = [graph.constant(float(node + 1), NUMBER) for node in range(4)]
    models = [float(node + 1) for node in range(4)]
    for node, one, other, solve in steps:
        refs[node] = record(graph, add, refs[one], refs[other])
        models[node] = models[one] + models[other]
        if solve:
            assert solver.value(refs[node]) == models[node]
    assert [solver.value(ref) for ref in refs] == models
    graph.drain()
    assert set(graph.values) == {ref.id for ref in refs}
