"""The log of how values came to be: what is written, and how the files of many processes are put together."""

from __future__ import annotations

import json
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logged import FULL, Averaging, Model, Noise, simulate, steps_of
from node import ConfigError, Context, Message, Protocol, Ref, on
from node.config import ChurnSection
from node.errors import StoreError
from node.op import Ref as AnyRef
from node.op import Spec
from node.provenance import PUBLIC, Log, Made, Received, read

SPEC = Spec((2,))
A, B = memoryview(b"12345678"), memoryview(b"87654321")


def ref(id, spec=SPEC):
    return AnyRef(id, spec, deque())


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Process:
    """A real node's process: its log, and values by number."""

    def __init__(self, folder, node):
        self.node = node
        self.log = Log.of_life(folder, node)

    def make(self, value, *inputs, op="op"):
        self.log.made(self.node, ref(value), op, [ref(id) for id in inputs], {})

    def leave(self, value, content=A):
        self.log.left(self.node, ref(value), content)

    def get(self, value, sender=None, content=A):
        """A value arrives; with a sender, in a message that is taken in."""
        self.log.came(self.node, ref(value), content)
        if sender is not None:
            self.log.received(self.node, sender, Model(round=0, model=ref(value)))


# Writing


def test_a_line_says_what_happened(tmp_path):
    log = Log.of_life(tmp_path, 3)
    log.made(3, ref(7), "an:op", [ref(-1), ref(2)], {"weights": (0.5, 0.25), "by": math.inf, "name": "x"})
    log.received(3, 1, Model(round=4, model=ref(-2)))
    assert lines(tmp_path / "3-0.jsonl") == [
        ["made", 3, 7, "an:op", [-1, 2], {"weights": [0.5, 0.25], "by": None, "name": "x"}],
        ["received", 3, 1, [-2]],
    ]


def test_what_says_nothing_is_left_out(tmp_path):
    class Bare(Message, name="test.provenance/bare/1"):
        number: int

    log = Log.of_life(tmp_path, 3)
    log.made(3, ref(7, Spec((2,), "float64", ("accuracy", "loss"))), "evaluate", [ref(1)], {})
    log.received(3, 1, Bare(number=1))
    log.received(3, 3, Model(round=0, model=ref(1)))
    assert lines(tmp_path / "3-0.jsonl") == []


def test_every_life_has_a_file_of_its_own(tmp_path):
    for life in range(3):
        Log.of_life(tmp_path, 5)
        assert (tmp_path / f"5-{life}.jsonl").exists()
    Log.of_life(tmp_path, 55)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5-0.jsonl", "5-1.jsonl", "5-2.jsonl", "55-0.jsonl"]


def test_a_simulation_writes_in_large_pieces_and_all_of_it_in_the_end(tmp_path):
    path = tmp_path / "lineage" / "all.jsonl"
    with Log.of_all(tmp_path / "lineage") as log:
        log.made(0, ref(0), "op", [], {})
        assert path.stat().st_size == 0
        for value in range(1, 40_000):
            log.made(0, ref(value), "op", [], {})
        assert 1 << 20 < path.stat().st_size < 2 << 20
    *rows, end = lines(path)
    assert [row[2] for row in rows] == list(range(40_000))
    assert end == ["end", 40_000]


def test_a_folder_that_takes_no_more_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        Log.of_all(tmp_path / "file" / "lineage")


# Reading one file


def test_a_simulated_run_is_read_in_its_order(tmp_path):
    steps = steps_of(tmp_path, lambda: Averaging(Averaging.Config(rounds=1)), nodes=3, topology=FULL)
    made = [step for step in steps if isinstance(step, Made)]
    assert [step.value for step in made] == list(range(1, len(made) + 1))
    assert [step.op for step in made] == ["quadratic:train"] * 3 + ["quadratic:mix"] * 3
    assert [step.inputs for step in made[:3]] == [(PUBLIC,)] * 3
    received = {(step.node, step.sender, step.values) for step in steps if isinstance(step, Received)}
    assert received == {(node, sender, (sender + 1,)) for node in range(3) for sender in range(3) if node != sender}
    for step in made[3:]:
        assert step.inputs[0] == step.node + 1
        assert step.static["weights"] == pytest.approx([1 / 3] * 3)


def test_a_log_changes_nothing_of_a_run(tmp_path):
    def models(folder):
        world = simulate(folder, lambda: Averaging(Averaging.Config(rounds=3, always=True)), mods=[Noise()])
        return [np.asarray(world.solver.value(world.finals[node])).tobytes() for node in range(8)]

    assert models(tmp_path) == models(None)


def test_a_message_that_nobody_collects_was_received_all_the_same(tmp_path):
    class Unread(Protocol):
        async def run(self, ctx: Context) -> Ref:
            model = await ctx.train(ctx.initial_model())
            await ctx.send(ctx.peers(), Model(round=0, model=model))
            await ctx.sleep(10.0)
            return model

    steps = steps_of(tmp_path, Unread, nodes=3, topology=FULL)
    assert sum(isinstance(step, Received) for step in steps) == 6


def test_a_message_that_was_lost_is_not_there(tmp_path):
    class Late(Protocol):
        async def run(self, ctx: Context) -> Ref:
            model = await ctx.train(ctx.initial_model())
            await ctx.sleep(5.0)
            await ctx.send(ctx.peers(), Model(round=0, model=model))
            await ctx.sleep(50.0)
            return model

    churn = ChurnSection(schedule=[{"time_s": 3.0, "node": 1, "what": "crash"}])
    world = simulate(tmp_path, Late, nodes=6, topology=FULL, churn=churn)
    steps = read(tmp_path / "lineage")
    arrived = sum(isinstance(step, Received) for step in steps)
    assert world.mail.lost > 0
    assert arrived == world.mail.messages - world.mail.lost


def test_answers_and_questions_are_received_too(tmp_path):
    class Question(Message, name="test.provenance/question/1"):
        model: Ref

    class Answer(Message, name="test.provenance/answer/1"):
        model: Ref

    class Asking(Protocol):
        async def run(self, ctx: Context) -> Ref:
            self.model = await ctx.train(ctx.initial_model())
            return (await ctx.request(1 - ctx.me, Question(model=self.model))).model

        @on(Question)
        def asked(self, ctx, sender, message):
            return Answer(model=ctx.mix([message.model]))

    steps = steps_of(tmp_path, Asking, nodes=2, topology=FULL)
    assert sorted((step.node, step.sender) for step in steps if isinstance(step, Received)) == [
        (0, 1),
        (0, 1),
        (1, 0),
        (1, 0),
    ]


def test_half_a_line_at_the_end_is_of_a_process_that_was_killed(tmp_path):
    process = Process(tmp_path, 0)
    process.make(0, -1)
    path = tmp_path / "0-0.jsonl"
    path.write_bytes(path.read_bytes() + b'["made",0,1,"o')
    gaps = []
    assert read(tmp_path, 1, gaps.append) == [Made(0, 1, "op", (PUBLIC,), {})]
    assert gaps == ["0-0.jsonl breaks off after 1 rows: its process was killed, or rows are missing"]


def test_of_whole_files_nothing_is_missing(tmp_path):
    for node in (0, 0, 1):
        process = Process(tmp_path, node)
        process.make(0, -1)
        process.log.close()
    gaps = []
    assert len(read(tmp_path, 2, gaps.append)) == 3
    assert gaps == []
    (tmp_path / "0-0.jsonl").unlink()
    read(tmp_path, 4, gaps.append)
    assert gaps == [f"{name}.jsonl is missing" for name in ("0-0", "2-0", "3-0")]


def test_rows_that_are_missing_of_a_whole_file_are_noticed(tmp_path):
    process = Process(tmp_path, 0)
    for value in range(4):
        process.make(value, -1)
    process.log.close()
    path = tmp_path / "0-0.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    for at in range(4):
        path.write_bytes(b"".join(row for number, row in enumerate(rows) if number != at))
        with pytest.raises(ConfigError, match="has 3 rows of 4"):
            read(tmp_path)


def test_a_value_that_nobody_made_is_not_public(tmp_path):
    Process(tmp_path, 0).make(3, 2)
    with pytest.raises(ConfigError, match=r"0-0.jsonl: value 2 was made by no row before its use"):
        read(tmp_path)


def test_metrics_that_an_op_takes_are_left_out_too(tmp_path):
    log = Log.of_life(tmp_path, 0)
    log.made(0, ref(1), "choose", [ref(-1), ref(0, Spec((2,), "float64", ("accuracy", "loss")))], {})
    assert read(tmp_path) == [Made(0, 1, "choose", (PUBLIC,), {})]


@pytest.mark.parametrize("line", [b"nonsense", b'["lost",0,1]', b'["received",0]', b"[]", b'["made",0,"x","op",[],{}]'])
def test_any_other_line_must_make_sense(tmp_path, line):
    Process(tmp_path, 0).make(0)
    with (tmp_path / "0-0.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ConfigError, match=r"0-0.jsonl, line 2: no record of who made and got what"):
        read(tmp_path)


def test_without_files_the_switch_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"lineage: .*run with record.lineage = true"):
        read(tmp_path / "lineage")


# Reading the files of many processes


def test_what_arrives_is_what_was_sent(tmp_path):
    one, other = Process(tmp_path, 0), Process(tmp_path, 1)
    other.get(-2, sender=0)
    other.make(4, -2, -1)
    one.make(9, -1)
    one.make(3, 9)
    one.leave(3)
    assert read(tmp_path) == [
        Made(0, 1, "op", (PUBLIC,), {}),
        Made(0, 2, "op", (1,), {}),
        Received(1, 0, (2,)),
        Made(1, 3, "op", (2, PUBLIC), {}),
    ]


def test_equal_bytes_of_two_senders_are_two_values(tmp_path):
    processes = [Process(tmp_path, node) for node in range(3)]
    for process in processes[:2]:
        process.make(0)
        process.leave(0)
    processes[2].get(-2, sender=1)
    processes[2].get(-3, sender=0)
    received = [step for step in read(tmp_path) if isinstance(step, Received)]
    assert received == [Received(2, 1, (2,)), Received(2, 0, (1,))]


def test_equal_bytes_of_another_shape_are_another_value(tmp_path):
    one, other = Process(tmp_path, 0), Process(tmp_path, 1)
    one.make(0)
    one.log.left(0, ref(0, Spec((1,), "float64")), A)
    other.get(-2, sender=0)
    with pytest.raises(ConfigError, match="node 1 got a value from node 0, and no file"):
        read(tmp_path)


def test_a_lost_message_shifts_none_of_those_after_it(tmp_path):
    one, other = Process(tmp_path, 0), Process(tmp_path, 1)
    for value, content in ((0, A), (1, B)):
        one.make(value)
        one.leave(value, content)
    other.get(-2, sender=0, content=B)
    assert read(tmp_path)[-1] == Received(1, 0, (2,))


def test_a_message_that_was_refused_is_passed_over(tmp_path):
    one, other = Process(tmp_path, 0), Process(tmp_path, 1)
    one.make(0)
    one.leave(0)
    other.get(-2, content=B)
    other.get(-3, sender=0)
    assert [step for step in read(tmp_path) if isinstance(step, Received)] == [Received(1, 0, (1,))]


def test_what_is_passed_on_keeps_its_maker(tmp_path):
    processes = [Process(tmp_path, node) for node in range(3)]
    processes[0].make(0)
    processes[0].leave(0)
    processes[1].get(-2, sender=0)
    processes[1].leave(-2)
    processes[2].get(-2, sender=1)
    assert read(tmp_path)[1:] == [Received(1, 0, (1,)), Received(2, 1, (1,))]


def test_the_initial_model_is_public_on_whatever_way(tmp_path):
    one, other = Process(tmp_path, 0), Process(tmp_path, 1)
    one.leave(-1)
    other.get(-2, sender=0)
    other.make(0, -2)
    assert read(tmp_path) == [Received(1, 0, (PUBLIC,)), Made(1, 1, "op", (PUBLIC,), {})]


def test_a_restarted_node_goes_on_with_what_it_saved(tmp_path):
    first = Process(tmp_path, 0)
    first.make(0)
    first.make(1, 0)
    first.leave(1)
    second = Process(tmp_path, 0)
    second.get(-2)
    second.make(0, -2, -1)
    second.leave(0, B)
    third = Process(tmp_path, 0)
    third.get(-2, content=B)
    third.make(0, -2)
    assert [step.inputs for step in read(tmp_path)] == [(), (1,), (2, PUBLIC), (3,)]


def test_the_numbers_of_two_lives_are_not_mixed_up(tmp_path):
    first, other = Process(tmp_path, 0), Process(tmp_path, 1)
    first.make(0)
    first.leave(0)
    second = Process(tmp_path, 0)
    second.make(0, op="later")
    second.leave(0, B)
    other.get(-2, sender=0, content=B)
    other.make(5, -2)
    steps = read(tmp_path)
    (later,) = [step.value for step in steps if isinstance(step, Made) and step.op == "later"]
    assert Received(1, 0, (later,)) in steps
    assert steps[-1].inputs == (later,)


def test_a_missing_file_is_named_by_its_node(tmp_path):
    Process(tmp_path, 1).get(-2, sender=0)
    with pytest.raises(ConfigError, match=r"1-0.jsonl: node 1 got a value from node 0, and no file in .* says how"):
        read(tmp_path)


def test_a_missing_life_is_named_too(tmp_path):
    process = Process(tmp_path, 1)
    process.get(-2)
    process.make(0, -2)
    with pytest.raises(ConfigError, match="node 1 got a value from an earlier life of node 1"):
        read(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30))
def test_however_messages_go_the_whole_is_read_and_in_order(tmp_path_factory, sends):
    """Everybody makes a new value of all it has before each send; some messages are lost."""
    folder = tmp_path_factory.mktemp("lineage")
    processes = [Process(folder, node) for node in range(4)]
    held, made, constants = [[] for _ in processes], [0] * 4, [-1] * 4
    for number, (sender, to, arrives) in enumerate(sends):
        content = memoryview(number.to_bytes(8, "big"))
        processes[sender].make(made[sender], *held[sender])
        processes[sender].leave(made[sender], content)
        held[sender].append(made[sender])
        made[sender] += 1
        if arrives and to != sender:
            constants[to] -= 1
            processes[to].get(constants[to], sender, content)
            held[to].append(constants[to])
    steps = read(folder)
    seen = {PUBLIC}
    for step in steps:
        assert seen.issuperset(step.inputs if isinstance(step, Made) else step.values)
        seen.update([step.value] if isinstance(step, Made) else [])
    assert sum(isinstance(step, Made) for step in steps) == len(sends)
    assert sum(isinstance(step, Received) for step in steps) == sum(a and s != t for s, t, a in sends)
