"""Inference of numbers alone: what steps take, what adapters are, what clients ask, and who gets it."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import Context, Protocol, ProtocolError
from node.emulated import Emulated, ModelSection, TimedEngine, TimesSection, name_of
from node.errors import Missing
from node.inference import Card, Decode, Manifest, Prefill
from node.op import Spec
from node.streaming.layout import Layout
from node.testing import run_protocol
from node.workloads.requests import WorkloadSection
from node.world import Done

TIMES = TimesSection(prefill_token_s=0.001, decode_s=0.02, decode_row_s=0.003, rank_s=0.0001)
CARDS = {"small": Card(8, 100), "large": Card(64, 800)}


def emulated(**changed):
    values = {
        "model": ModelSection(layers=3, hidden=10, targets=2, element_bytes=2, chunk_bytes=100),
        "times": TIMES,
        "workload": WorkloadSection(requests=10),
        "adapters": 5,
        "ranks": (1, 4),
        "entries": (2, 3, 4),
    }
    return Emulated(**{**values, **changed})


def engine(times=TIMES, layers=4):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        return Done(None)

    return TimedEngine(sleep, layers, times, CARDS), slept


# Steps


def test_a_step_of_nothing_takes_no_time():
    assert engine()[0].step_s([], []) == 0.0


def test_a_prompt_takes_its_tokens_and_the_rank_of_its_adapter():
    made, _ = engine()
    assert made.step_s([Prefill(1, "", 100, range(4))], []) == pytest.approx(0.1)
    assert made.step_s([Prefill(1, "small", 100, range(4))], []) == pytest.approx(0.1 + 100 * 8 * 0.0001)


@given(st.integers(1, 500), st.sampled_from(["", "small", "large"]), st.integers(0, 4))
def test_a_prompt_in_two_parts_takes_as_long_as_in_one(tokens, adapter, cut):
    made, _ = engine()
    parts = [made.step_s([Prefill(1, adapter, tokens, layers)], []) for layers in (range(cut), range(cut, 4))]
    assert sum(parts) == pytest.approx(made.step_s([Prefill(1, adapter, tokens, range(4))], []))


def test_one_batch_of_tokens_shares_what_is_the_same_for_all():
    made, _ = engine()
    one = made.step_s([], [Decode(1, "small")])
    two = made.step_s([], [Decode(1, "small"), Decode(2, "large")])
    assert one == pytest.approx(0.02 + 0.003 + 0.0008)
    assert two == pytest.approx(one + 0.003 + 0.0064)


async def test_a_step_sleeps_as_long_as_it_takes():
    made, slept = engine()
    work = [Prefill(1, "", 10, range(4))], [Decode(2, "")]
    await made.step(*work)
    assert slept == [made.step_s(*work)]


def test_a_request_alone_is_its_prompt_and_its_later_tokens():
    made, _ = engine()
    assert made.expected_s(100, 1) == pytest.approx(0.1)
    assert made.expected_s(100, 11) == pytest.approx(0.1 + 10 * 0.023)


# Adapters


def test_ranks_are_given_in_turn_and_sizes_follow_from_them():
    cards = emulated().cards
    assert [card.rank for card in cards.values()] == [1, 4, 1, 4, 1]
    assert cards[name_of(1)].size_bytes == 3 * (2 * 4 * 10 * 2 * 2)


def test_a_manifest_has_the_bytes_of_its_card():
    made = emulated()
    shelf = made.shelf(None)
    for name, card in made.cards.items():
        manifest = shelf.manifest(name)
        assert sum(manifest.layers_bytes) == card.size_bytes
        assert len(manifest.layers_bytes) == 3


def test_an_adapter_that_is_not_there_is_missing():
    with pytest.raises(Missing, match="no adapter 'adapter-5'"):
        emulated().shelf(None).manifest(name_of(5))


class Shelving(Protocol):
    """Looks at every chunk of an adapter."""

    uses_topology = False
    sizes: ClassVar[list] = []

    @classmethod
    def inference(cls, config, nodes):
        return emulated()

    async def run(self, ctx: Context):
        shelf = ctx.inference.shelf(ctx)
        manifest = shelf.manifest(name_of(1))
        layout = Layout(manifest.layers_bytes, manifest.chunk_bytes)
        for chunk in range(layout.chunks):
            content = shelf.content(name_of(1), chunk)
            assert await shelf.accepts(manifest, chunk, content)
            assert not await shelf.accepts(manifest._replace(chunk_bytes=99), chunk, content)
            self.sizes.append(content.spec)
        ctx.record(round=0, chunks=layout.chunks)


def test_contents_have_sizes_and_are_never_computed():
    Shelving.sizes.clear()
    outcome = run_protocol(Shelving(), nodes=2)
    assert outcome.solved == 0
    assert sum(spec.size_bytes for spec in Shelving.sizes) == 2 * emulated().cards[name_of(1)].size_bytes
    assert {spec.dtype for spec in Shelving.sizes} == {"uint8"}


def test_a_protocol_that_declares_nothing_to_serve_has_nothing():
    class Wanting(Protocol):
        async def run(self, ctx: Context):
            with pytest.raises(ProtocolError, match="serves nothing"):
                _ = ctx.inference

    run_protocol(Wanting(), nodes=2)


# Requests


def asked(made, node, seed=0):
    return made.requests(SimpleNamespace(me=node, seed=seed))


def test_every_request_comes_in_at_one_node():
    made = emulated()
    numbers = sorted(number for node in (2, 3, 4) for number, _ in asked(made, node))
    assert numbers == list(range(10))


def test_all_nodes_draw_the_same_requests_and_another_seed_draws_others():
    one, other = emulated(), emulated()
    assert asked(one, 2) == asked(other, 2)
    assert asked(one, 2) != asked(one, 2, seed=1)


def test_requests_of_a_node_come_by_time():
    times = [request.arrival_s for _, request in asked(emulated(), 3)]
    assert times == sorted(times)


def test_the_blank_of_real_runs_is_as_long_as_it_says():
    from node.learn.blank import BLANK
    from node.op import Key, Task

    static = {"size_bytes": 7}
    assert BLANK.spec((), static) == Spec((7,), "uint8")
    assert BLANK.solve(Task((), static, Key(0, 0, 0))).tolist() == [0] * 7
    assert emulated().blank.solve(Task((), static, Key(0, 0, 0))).tolist() == [0] * 7


def test_a_manifest_of_real_bytes_has_digests():
    assert Manifest("a", (1,), 1).digests == ()
