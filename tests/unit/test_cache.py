"""Values on disk: found by what they follow from, whole or not at all, within a limit."""

import os

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import cache as module
from node import digests
from node.cache import Cache
from node.digests import Digests, Store
from node.errors import ComputeError, ConfigError
from node.graph import Graph
from node.op import Spec, op
from node.solver import InlineExecutor, Solver

VECTOR = Spec((4,), "float64")
METRICS = Spec((2,), "float64", ("accuracy", "loss"))


def to_buffer(value):
    return memoryview(np.ascontiguousarray(value)).cast("B")


def from_buffer(data, spec):
    return np.frombuffer(data, spec.dtype).reshape(spec.shape)


def open_cache(folder, limit_bytes=1 << 20):
    return Cache(folder, limit_bytes, to_buffer, from_buffer)


def vector(start):
    return np.arange(start, start + 4, dtype=np.float64)


def digest(number):
    return bytes([number]) * module.DIGEST_BYTES


def packs(folder):
    return sorted(folder.glob("*.pack"))


# The store


def test_what_was_put_is_there_for_the_next_run(tmp_path):
    open_cache(tmp_path).put({digest(1): (vector(1), VECTOR), digest(2): ({"accuracy": 0.5, "loss": 0.1}, METRICS)})
    again = open_cache(tmp_path)
    assert np.array_equal(again.get(digest(1)), vector(1))
    assert again.get(digest(2)) == {"accuracy": 0.5, "loss": 0.1}
    assert digest(3) not in again
    assert again.get(digest(3)) is None
    assert again.reused == 2


def test_bits_come_back_as_they_were(tmp_path):
    odd = np.array([np.nan, -0.0, np.inf, 5e-324])
    cache = open_cache(tmp_path)
    cache.put({digest(1): (odd, VECTOR)})
    assert cache.get(digest(1)).tobytes() == odd.tobytes()


def test_what_is_there_is_not_written_again(tmp_path):
    cache = open_cache(tmp_path)
    cache.put({digest(1): (vector(1), VECTOR)})
    written = cache.written_bytes
    cache.put({digest(1): (vector(1), VECTOR)})
    assert cache.written_bytes == written
    assert len(packs(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_rotten_value_counts_as_absent(tmp_path, damage):
    cache = open_cache(tmp_path)
    cache.put({digest(1): (vector(1), VECTOR), digest(2): (vector(2), VECTOR)})
    (pack,) = packs(tmp_path)
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    if damage == "flip":
        pack.write_bytes(data)
    elif damage == "truncate":
        pack.write_bytes(data[:-5])
    else:
        pack.unlink()
    with capture_logs() as logs:
        assert cache.get(digest(2)) is None
    assert "not whole" in logs[0]["event"]
    assert digest(2) not in cache
    if damage == "flip":
        assert np.array_equal(cache.get(digest(1)), vector(1)), "only what is rotten is lost"


@pytest.mark.parametrize("content", [b"", b"nothing of ours", module._MAGIC, module._MAGIC + b"\xff" * 64])
def test_a_file_that_is_no_pack_is_passed_over(tmp_path, content):
    (tmp_path / "odd.pack").write_bytes(content)
    assert open_cache(tmp_path).get(digest(1)) is None


def test_every_truncation_of_a_pack_is_survived(tmp_path):
    open_cache(tmp_path).put({digest(1): (vector(1), VECTOR)})
    (pack,) = packs(tmp_path)
    whole = pack.read_bytes()
    for length in range(len(whole)):
        pack.write_bytes(whole[:length])
        with capture_logs():
            assert open_cache(tmp_path).get(digest(1)) is None, length


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = open_cache(tmp_path)
    with capture_logs() as logs:
        cache.put({digest(1): (vector(1), VECTOR)})
    assert logs[0]["event"] == "values not cached"
    assert list(tmp_path.iterdir()) == []
    assert digest(1) not in cache


def test_past_its_limit_the_folder_loses_what_was_not_used_for_longest(tmp_path):
    cache = open_cache(tmp_path, limit_bytes=400)
    for number in (1, 2):
        cache.put({digest(number): (vector(number), VECTOR)})
    for age, pack in zip((10**9, 2 * 10**9), [cache._places[digest(n)].pack for n in (1, 2)], strict=True):
        os.utime(pack, ns=(age, age))
    reader = open_cache(tmp_path, limit_bytes=400)
    assert reader.get(digest(1)) is not None
    one = packs(tmp_path)[0].stat().st_size
    reader._limit_bytes = 2 * one + one // 2
    reader.put({digest(3): (vector(3), VECTOR)})
    assert [number for number in (1, 2, 3) if digest(number) in reader] == [1, 3], "2 was not used for longest"
    assert len(packs(tmp_path)) == 2


def test_two_runs_may_use_one_folder(tmp_path):
    one, other = open_cache(tmp_path), open_cache(tmp_path)
    one.put({digest(1): (vector(1), VECTOR)})
    other.put({digest(1): (vector(1), VECTOR), digest(2): (vector(2), VECTOR)})
    for pack in packs(tmp_path):
        pack.unlink()
    with capture_logs():
        assert one.get(digest(1)) is None


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"executor.cache: .*file/inside: cannot be used"):
        open_cache(tmp_path / "file" / "inside")


# What a value follows from


@op(seeded=True)
def noised(model, *, scale, rng):
    return model + scale * rng.normal(size=model.shape)


@op
def doubled(model, *, by=2.0):
    return model * by


@op
def also_doubled(model, *, by=2.0):
    return model * by


def digests_of(build, seed=3, start=0.0):
    graph = Graph(seed)
    initial = graph.constant(vector(start), VECTOR)
    ref = build(graph, initial)
    return Digests(graph, to_buffer).of(ref.id)


def apply(graph, op, *inputs, node=1, counter=1, **static):
    return graph.record(graph.call(op, inputs, static), inputs, node, counter)


def plain(graph, initial):
    return apply(graph, doubled, apply(graph, noised, initial, scale=0.5), by=2.0)


def test_the_same_task_has_the_same_digest_in_every_run():
    assert digests_of(plain) == digests_of(plain)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: digests_of(plain, seed=4),
        lambda: digests_of(plain, start=1.0),
        lambda: digests_of(lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.5, node=2), by=2.0)),
        lambda: digests_of(lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.5, counter=2), by=2.0)),
        lambda: digests_of(lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.25), by=2.0)),
        lambda: digests_of(lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.5), by=2)),
        lambda: digests_of(lambda g, i: apply(g, also_doubled, apply(g, noised, i, scale=0.5), by=2.0)),
        lambda: digests_of(lambda g, i: apply(g, doubled, i, by=2.0)),
    ],
    ids=["seed", "input", "node", "counter", "static", "type of a static", "op", "chain"],
)
def test_each_ingredient_alone_makes_a_difference(changed):
    assert changed() != digests_of(plain)


@pytest.mark.parametrize(
    "changed",
    [
        lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.5), by=2.0, node=7),
        lambda g, i: apply(g, doubled, apply(g, noised, i, scale=0.5), by=2.0, counter=9),
        lambda g, i: [apply(g, doubled, i, by=9.0), plain(g, i)][1],
    ],
    ids=["node of an op without randomness", "its counter", "what else the graph holds"],
)
def test_what_the_bits_do_not_follow_from_makes_none(changed):
    assert digests_of(changed) == digests_of(plain)


# Solving with a cache


def solved(folder, build, wanted=1):
    """Solve what ``build`` records in a fresh process' stead; gives the value and how many tasks were solved."""
    graph = Graph(3)
    solver = Solver(graph, InlineExecutor(), store=Store(graph, open_cache(folder), to_buffer))
    ref = build(graph, graph.constant(vector(0.0), VECTOR))
    value = np.array(solver.value(ref))
    solver.keep()
    return value, solver.solved, graph.reused


def chain(length):
    def build(graph, initial):
        model = initial
        for counter in range(1, length + 1):
            model = apply(graph, noised, model, scale=0.5, counter=counter)
        return model

    return build


def test_a_longer_run_solves_only_what_a_shorter_one_has_not(tmp_path):
    solved(tmp_path / "one", chain(5))
    cold, all_of_it, _ = solved(tmp_path / "other", chain(8))
    warm, rest, reused = solved(tmp_path / "one", chain(8))
    assert np.array_equal(cold, warm)
    assert (all_of_it, rest, reused) == (8, 3, 5)


def test_what_was_solved_before_is_not_counted_as_skipped(tmp_path):
    solved(tmp_path, chain(5))
    skipped = []
    graph = Graph(3, on_skip=skipped.append)
    solver = Solver(graph, InlineExecutor(), store=Store(graph, open_cache(tmp_path), to_buffer))
    ref = chain(5)(graph, graph.constant(vector(0.0), VECTOR))
    solver.value(ref)
    del ref
    graph.drain()
    assert skipped == []
    assert (solver.solved, graph.skipped, graph.reused) == (0, 0, 5)


def test_a_dropped_branch_beside_a_cached_one_is_still_skipped(tmp_path):
    solved(tmp_path, chain(2))
    graph = Graph(3)
    solver = Solver(graph, InlineExecutor(), store=Store(graph, open_cache(tmp_path), to_buffer))
    initial = graph.constant(vector(0.0), VECTOR)
    dropped = apply(graph, noised, initial, scale=9.0, counter=77)
    ref = chain(2)(graph, initial)
    solver.value(ref)
    del dropped
    graph.drain()
    assert graph.skipped == 1


def test_an_op_made_inside_of_a_function_is_refused_because_of_what_it_may_hold():
    def make(factor):
        @op
        def times(model):
            return model * factor

        return times

    with pytest.raises(ComputeError, match=r"cannot be cached.*define it in a module"):
        digests_of(lambda graph, initial: apply(graph, make(3.0), initial))


def test_many_models_go_into_packs_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_PACK_BYTES", 2 * VECTOR.size_bytes)
    graph = Graph(3)
    solver = Solver(graph, InlineExecutor(), store=Store(graph, open_cache(tmp_path), to_buffer))
    initial = graph.constant(vector(0.0), VECTOR)
    refs = [apply(graph, noised, initial, scale=0.5, counter=counter) for counter in range(10)]
    solver.solve(refs)
    solver.keep()
    assert len(packs(tmp_path)) == 4
    assert len(open_cache(tmp_path)._places) == 10
