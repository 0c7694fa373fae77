"""Solving: what is wanted and nothing else, the same values whatever the window and the executor."""

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ComputeError, ProtocolError
from node.graph import Graph
from node.op import Op, Spec, op
from node.solver import BatchedExecutor, InlineExecutor, Plan, Solver

NUMBER = Spec((), "float64")
METRICS = Spec((1,), "float64", ("accuracy",))


@op
def total(*inputs):
    return sum(inputs)


@op(seeded=True, batch=lambda tasks: [task.inputs[0] + task.key.rng().normal() for task in tasks])
def noisy(a, *, rng):
    return a + rng.normal()


@op(batch=lambda tasks: [task.inputs[0] * task.static["by"] for task in tasks])
def scaled(a, *, by):
    return a * by


def record(graph, op, *inputs, node=0, counter=0, **static):
    return graph.record(graph.call(op, inputs, static), inputs, node, counter)


def counted(name="counted"):
    calls = Counter()

    def solve(task):
        calls[task.key.counter] += 1
        return sum(task.inputs) + task.key.counter

    return Op(name, solve, spec=lambda inputs, static: NUMBER), calls


# Random graphs


OPS = [total, noisy, scaled]


@st.composite
def dags(draw):
    """Tasks as (op, inputs): inputs are numbers of earlier tasks or of the two constants, and may repeat."""
    tasks = []
    for number in range(2, draw(st.integers(3, 30))):
        kind = draw(st.sampled_from(OPS))
        width = draw(st.integers(1, 4)) if kind is total else 1
        tasks.append((kind, draw(st.lists(st.integers(0, number - 1), min_size=width, max_size=width))))
    return tasks


def build(graph, tasks):
    refs = [graph.constant(1.5, NUMBER), graph.constant(-0.25, NUMBER)]
    for counter, (kind, inputs) in enumerate(tasks):
        static = {"by": 0.5} if kind is scaled else {}
        refs.append(record(graph, kind, *[refs[i] for i in inputs], node=counter % 3, counter=counter, **static))
    return refs


@given(dags(), st.data())
def test_any_window_and_executor_give_the_same_bits(tasks, data):
    reference = Graph(5)
    wanted = build(reference, tasks)
    solver = Solver(reference, InlineExecutor(), deduplicate=False)
    values = [solver.value(ref) for ref in wanted]
    assert solver.solved == len(tasks)

    other = Graph(5)
    refs = build(other, tasks)
    executor = data.draw(st.sampled_from([InlineExecutor(), BatchedExecutor()]))
    solver = Solver(other, executor, deduplicate=data.draw(st.booleans()), fuse=data.draw(st.booleans()))
    order = data.draw(st.permutations(range(len(refs))))
    while order:
        size = data.draw(st.integers(1, len(order)))
        window, order = order[:size], order[size:]
        solver.solve([refs[i] for i in window])
    assert [solver.value(ref) for ref in refs] == values
    assert solver.solved + solver.deduplicated == len(tasks)


@given(dags(), st.data())
def test_only_what_is_wanted_is_computed_and_nothing_stays_behind(tasks, data):
    graph = Graph(5)
    refs = build(graph, tasks)
    kept = sorted(data.draw(st.sets(st.integers(0, len(refs) - 1), min_size=1)))
    wanted = {i: refs[i] for i in kept}
    del refs
    solver = Solver(graph, InlineExecutor())
    solver.solve(wanted.values())
    needed, stack = set(), list(kept)
    while stack:
        i = stack.pop()
        if i >= 2 and i not in needed:
            needed.add(i)
            stack.extend(tasks[i - 2][1])
    assert solver.solved + solver.deduplicated == len(needed)
    graph.drain()
    assert set(graph.values) == {ref.id for ref in wanted.values()}
    wanted.clear()
    graph.drain()
    assert graph.values == {}


# What is computed


def test_dead_tasks_are_never_computed():
    graph = Graph(0)
    counting, calls = counted()
    start = graph.constant(0.0, NUMBER)
    alive = record(graph, counting, start, counter=1)
    dead = record(graph, counting, alive, counter=2)
    del dead
    Solver(graph, InlineExecutor()).solve([alive])
    assert calls == {1: 1}


def test_a_task_is_computed_once_however_often_it_is_wanted():
    graph = Graph(0)
    counting, calls = counted()
    ref = record(graph, counting, graph.constant(0.0, NUMBER), counter=3)
    solver = Solver(graph, InlineExecutor())
    solver.solve([ref, ref])
    solver.solve([ref])
    assert solver.value(ref) == 3.0
    assert calls == {3: 1}
    assert (solver.solved, solver.batches) == (1, 1)


def test_a_planned_task_survives_its_handles():
    graph = Graph(0)
    counting, calls = counted()
    first = record(graph, counting, graph.constant(0.0, NUMBER), counter=1)
    last = record(graph, counting, first, counter=2)
    plan = Plan(graph, [last])
    del first, last
    graph.drain()
    while batch := plan.next_batch():
        plan.commit(batch, InlineExecutor().solve(batch.op, batch.tasks))
    assert calls == {1: 1, 2: 1}
    assert graph.values == {}


def test_values_are_freed_while_a_long_chain_is_solved():
    graph = Graph(0)
    ref = graph.constant(1.0, NUMBER)
    most = 0

    def solve(task):
        nonlocal most
        most = max(most, len(graph.values))
        return task.inputs[0] + 1

    step = Op("step", solve)
    for _ in range(1000):
        ref = record(graph, step, ref)
    assert Solver(graph, InlineExecutor()).value(ref) == 1001.0
    assert most <= 2


def test_nothing_wanted_is_nothing_done():
    solver = Solver(Graph(0), InlineExecutor())
    solver.solve([])
    assert (solver.solved, solver.batches) == (0, 0)


# Batches


def test_ready_tasks_of_one_op_go_in_one_call():
    graph = Graph(0)
    sizes = []

    def many(tasks):
        sizes.append(len(tasks))
        return [task.inputs[0] for task in tasks]

    same = Op("same", lambda task: task.inputs[0], many)
    start = graph.constant(1.0, NUMBER)
    first = [record(graph, same, start) for _ in range(50)]
    second = [record(graph, same, ref) for ref in first]
    solver = Solver(graph, BatchedExecutor(), deduplicate=False)
    solver.solve(second)
    assert sizes == [50, 50]
    assert (solver.batches, solver.solved) == (2, 100)


@pytest.mark.parametrize("fuse", [True, False])
def test_no_batch_is_larger_than_the_most(fuse):
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    refs = [record(graph, scaled, start, by=2.0) for _ in range(2500)]
    plan = Plan(graph, refs, fuse=fuse)
    sizes = []
    while batch := plan.next_batch():
        sizes.append(len(batch.ids))
        plan.commit(batch, BatchedExecutor().solve(batch.op, batch.tasks))
    assert sizes == [1024, 1024, 452]
    assert all(graph.values[ref.id] == 2.0 for ref in refs)


def rounds(graph, count, nodes=300):
    """Rounds on a ring, as pairs of the models and what evaluates them."""
    train = Op("train", lambda task: task.inputs[0], lambda tasks: [task.inputs[0] for task in tasks], seeded=True)
    evaluate = Op("evaluate", lambda task: {"accuracy": 1.0}, spec=lambda inputs, static: METRICS, seeded=True)
    models = [graph.constant(1.0, NUMBER)] * nodes
    metrics = []
    for counter in range(count):
        trained = [record(graph, train, model, node=i, counter=counter) for i, model in enumerate(models)]
        models = [record(graph, total, trained[i - 1], trained[i], node=i) for i in range(nodes)]
        metrics += [record(graph, evaluate, model, node=i) for i, model in enumerate(models)]
    return models, metrics


def batches(plan):
    while batch := plan.next_batch():
        yield batch
        plan.commit(batch, InlineExecutor().solve(batch.op, batch.tasks))


def test_large_batches_take_a_round_at_a_time():
    graph = Graph(0)
    models, metrics = rounds(graph, 2)
    sizes = [(batch.op.name.split(":")[-1], len(batch.ids)) for batch in batches(Plan(graph, metrics, fuse=False))]
    assert sizes == [("train", 300), ("total", 300), ("evaluate", 300)] * 2
    assert all(graph.is_solved(model.id) for model in models)


def test_fused_batches_train_what_was_just_mixed():
    graph = Graph(0)
    models, metrics = rounds(graph, 2)
    solved = [(batch.op.name.split(":")[-1], batch.ids) for batch in batches(Plan(graph, metrics, fuse=True))]
    assert max(len(ids) for _, ids in solved) == 128
    assert sum(len(ids) for _, ids in solved) == 1800
    mixed = [at for at, (name, ids) in enumerate(solved) if name == "total" and ids[0] < 600]
    trained = [at for at, (name, ids) in enumerate(solved) if name == "train" and ids[0] >= 900]
    assert mixed[0] < trained[0] < mixed[-1]
    assert all(graph.is_solved(model.id) for model in models)


# Equal tasks


def test_equal_tasks_are_solved_once_and_share_their_value():
    graph = Graph(0)
    counting, calls = counted()
    start, other = graph.constant(1.0, NUMBER), graph.constant(1.0, NUMBER)
    same = [record(graph, counting, start, node=i, counter=i) for i in range(3)]
    apart = [record(graph, counting, other), record(graph, counting, start, by=1)]
    after = [record(graph, total, ref, start) for ref in same]
    solver = Solver(graph, InlineExecutor())
    solver.solve([*after, *apart])
    assert (solver.solved, solver.deduplicated) == (4, 4)
    assert calls == {0: 3}
    assert graph.values[after[0].id] is graph.values[after[2].id]
    assert graph.values[same[0].id] == 1.0


def test_tasks_that_read_their_key_are_never_equal():
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    refs = [record(graph, noisy, start, node=i, counter=1) for i in range(3)]
    solver = Solver(graph, InlineExecutor())
    assert len({solver.value(ref) for ref in refs}) == 3
    solver = Solver(graph, InlineExecutor())
    solver.solve([record(graph, noisy, start, node=i, counter=2) for i in range(3)])
    assert (solver.solved, solver.deduplicated) == (3, 0)


def test_equal_tasks_may_be_solved_one_by_one():
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    refs = [record(graph, scaled, start, by=2.0) for _ in range(5)]
    solver = Solver(graph, InlineExecutor(), deduplicate=False)
    solver.solve(refs)
    assert (solver.solved, solver.deduplicated) == (5, 0)


# Values that are elsewhere


class Remote(InlineExecutor):
    """Gives handles; what is fetched twice would show."""

    def __init__(self):
        self.fetched = []

    def solve(self, op, tasks):
        return [("handle", op.solve(task._replace(inputs=tuple(map(here, task.inputs))))) for task in tasks]

    def fetch(self, values):
        self.fetched += [value for value in values if isinstance(value, tuple)]
        return [here(value) for value in values]


def here(value):
    return value[1] if isinstance(value, tuple) else value


def test_metrics_that_were_wanted_are_fetched_and_models_stay_where_they_are():
    graph = Graph(0)
    tensor = Spec((3,))
    step = Op("step", lambda task: task.inputs[0] + 1)
    evaluate = Op("evaluate", lambda task: {"accuracy": task.inputs[0]}, spec=lambda inputs, static: METRICS)
    model = record(graph, step, graph.constant(1.0, tensor))
    metrics = record(graph, evaluate, model)
    solver = Solver(graph, Remote())
    solver.solve([model, metrics])
    assert graph.values[metrics.id] == {"accuracy": 2.0}
    assert graph.values[model.id] == ("handle", 2.0)
    assert solver.value(metrics) == {"accuracy": 2.0}
    assert solver.value(model) == 2.0
    solver.solve([model, metrics])
    assert solver.executor.fetched == [("handle", {"accuracy": 2.0}), ("handle", 2.0)]


def test_numbers_that_could_not_be_fetched_are_asked_for_again():
    class Failing(Remote):
        fails = True

        def fetch(self, values):
            if self.fails:
                raise ComputeError("the cluster is away")
            return super().fetch(values)

    graph = Graph(0)
    solver = Solver(graph, Failing())
    one = graph.constant(1.0, NUMBER)
    metric = record(graph, scaled, one, by=2.0)
    with pytest.raises(ComputeError):
        solver.solve([metric])
    with pytest.raises(ComputeError):
        solver.solve([])
    solver.executor.fails = False
    solver.solve([])
    assert graph.values[metric.id] == 2.0


def test_lone_numbers_that_were_wanted_are_fetched_too():
    graph = Graph(0)
    refs = [record(graph, scaled, graph.constant(2.0, NUMBER), by=by) for by in (1.0, 3.0)]
    solver = Solver(graph, Remote())
    solver.solve([*refs, refs[0]])
    assert [graph.values[ref.id] for ref in refs] == [2.0, 6.0]
    assert len(solver.executor.fetched) == 2


def test_metrics_go_first_because_they_let_models_go():
    graph = Graph(0)
    start = graph.constant(1.0, NUMBER)
    evaluate = Op("evaluate", lambda task: {"accuracy": 1.0}, spec=lambda inputs, static: METRICS)
    models = [record(graph, total, start) for _ in range(5)]
    metric = record(graph, evaluate, start)
    assert Plan(graph, [*models, metric]).next_batch().op is evaluate


def test_a_batch_may_be_solved_in_another_thread():
    graph = Graph(0)
    ref = record(graph, scaled, graph.constant(2.0, NUMBER), by=4.0)
    plan = Plan(graph, [ref])
    batch = plan.next_batch()
    values = []
    thread = threading.Thread(target=lambda: values.extend(InlineExecutor().solve(batch.op, batch.tasks)))
    thread.start()
    thread.join()
    plan.commit(batch, values)
    assert graph.values[ref.id] == 8.0
    assert plan.next_batch() is None


def test_an_abandoned_plan_lets_go_of_what_it_held():
    graph = Graph(0)
    ref = record(graph, scaled, graph.constant(2.0, NUMBER), by=4.0)
    plan = Plan(graph, [ref])
    plan.abandon()
    assert plan.next_batch() is None
    del ref
    graph.drain()
    assert graph.values == {}


# Errors


def test_an_ops_error_names_the_op_and_the_node():
    def solve(task):
        raise ValueError("shapes do not match")

    graph = Graph(0)
    broken = Op("mine:broken", solve, spec=lambda inputs, static: NUMBER)
    with pytest.raises(ComputeError, match="mine:broken failed for node 4: ValueError: shapes do not match") as error:
        Solver(graph, InlineExecutor()).value(record(graph, broken, node=4))
    assert isinstance(error.value.__cause__, ValueError)


def test_an_error_in_a_batch_names_the_first_few_nodes():
    graph = Graph(0)
    broken = Op("broken", lambda task: 1 / 0, spec=lambda inputs, static: NUMBER)
    refs = [record(graph, broken, node=node % 8) for node in range(16)]
    with pytest.raises(ComputeError, match="broken failed for node 0, 1, 2, 3, 4…: ZeroDivisionError"):
        Solver(graph, InlineExecutor(), deduplicate=False).solve(refs)


def test_our_own_errors_pass_as_they_are():
    def solve(task):
        raise ProtocolError("not like this")

    graph = Graph(0)
    with pytest.raises(ProtocolError, match=r"^not like this$"):
        Solver(graph, InlineExecutor()).value(record(graph, Op("own", solve, spec=lambda inputs, static: NUMBER)))


def test_a_batched_form_must_give_one_value_for_each_task():
    graph = Graph(0)
    short = Op("short", lambda task: 0.0, lambda tasks: [0.0], spec=lambda inputs, static: NUMBER)
    refs = [record(graph, short) for _ in range(3)]
    with pytest.raises(ComputeError, match="short solved 1 values for 3 tasks"):
        Solver(graph, BatchedExecutor(), deduplicate=False).solve(refs)


@settings(max_examples=25)
@given(dags(), st.integers(0, 27))
def test_after_an_error_the_graph_is_whole(tasks, failing):
    """What could not be solved can be asked for again, and lets go of everything in the end."""
    graph = Graph(5)
    refs = build(graph, tasks)
    bad = [failing]

    class Failing(InlineExecutor):
        def solve(self, op, tasks):
            bad[0] -= len(tasks)
            if bad[0] < 0:
                raise ValueError("once")
            return [op.solve(task) for task in tasks]

    solver = Solver(graph, Failing(), deduplicate=False)
    if failing < len(tasks):
        with pytest.raises(ComputeError):
            solver.solve(refs)
    bad[0] = 10**6
    whole = Graph(5)
    expected = build(whole, tasks)
    reference = Solver(whole, InlineExecutor())
    assert [solver.value(ref) for ref in refs] == [reference.value(ref) for ref in expected]
    refs.clear()
    graph.drain()
    assert graph.values == {}
