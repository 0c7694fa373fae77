"""Which messages an attacker samples, where a sender has several in a round and they come in any order."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.attack import sampling
from node.attack.sampling import Curious, Piece, Sampler, Seen
from node.config import ExperimentConfig
from node.experiment.setup import prepare

HERE = __name__
SEVERAL = [
    *((sender, kind, keys) for sender in (1, 2) for kind in ("one", "two") for keys in ({}, {"lane": 0}, {"lane": 1})),
    (3, "one", {}),
]


class Keeping(Curious):
    """Notes the messages that it attacks."""

    metrics = ("kept",)

    def attack(self, ctx, round, seen, own):
        self.kept = [each.model for each in seen]
        return []


@pytest.fixture(scope="module")
def setup():
    sys.modules[HERE] = sys.modules[__name__]
    attacker = {"kind": f"{HERE}:Keeping", "every": 1, "most": 9}
    return prepare(
        ExperimentConfig.model_validate({"nodes": 5, "seed": 5, "model": {"name": "softmax"}, "attackers": [attacker]})
    )


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_computed():
    """A message stands for the model in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "record", lambda *_: None)
        patch.setattr(sampling, "seen_in", lambda ctx, sender, message, *_: [Seen(sender, message, 0)])
        patch.setattr(sampling, "_models", lambda message, scene: [message])
        yield


def message(kind, **keys):
    return SimpleNamespace(wire_name=kind, key_fields=("round", *keys), round=0, **keys)


def sampled(setup, messages, most):
    """What is attacked of (sender, message) that come in this order."""
    (planned,) = setup.attacks
    attack = Keeping(planned.config.model_copy(update={"most": most}), (0,), planned.scene)
    sampler = Sampler(attack, 0)
    sampler._own = object()
    for sender, each in messages:
        sampler._take(sender, each)
    sampler._close(SimpleNamespace(initial_model=lambda: None), 0)
    return attack.kept


@settings(max_examples=40, deadline=None)
@given(st.permutations(SEVERAL), st.integers(1, 15))
def test_a_sample_is_the_same_in_whatever_order_messages_come(setup, order, most):
    found = [
        sampled(setup, [(sender, message(kind, sender=sender, **keys)) for sender, kind, keys in each], most)
        for each in (SEVERAL, order)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == min(most, len(SEVERAL))


def test_every_lane_is_drawn_by_itself(setup):
    """Were lanes numbered alone, or all given one draw, the first would always be taken, or all."""
    lanes = [[(1, message("one", lane=lane)) for lane in range(each, each + 3)] for each in range(0, 60, 3)]
    chosen = [sampled(setup, three, 1)[0].lane % 3 for three in lanes]
    assert set(chosen) == {0, 1, 2}


def test_messages_of_one_lane_are_told_apart_by_their_order(setup):
    equal = [(1, message("one", place=0, lane=3)) for _ in range(3)]
    assert len(sampled(setup, equal, 9)) == 3
    assert len(sampled(setup, equal, 2)) == 2


def test_chunks_of_one_virtual_node_are_told_apart_by_their_numbers(setup):
    pieces = [(1, Piece(0, chunk, None)) for chunk in range(4)]
    for most in (1, 2, 3):
        assert sampled(setup, pieces, most) == sampled(setup, pieces[::-1], most)


def test_the_round_is_no_lane(setup):
    """Its place in the key does not matter."""
    first = SimpleNamespace(wire_name="one", key_fields=("round", "lane"), round=0, lane=1)
    second = SimpleNamespace(wire_name="one", key_fields=("lane", "round"), round=0, lane=1)
    assert sampling._lane(first) == sampling._lane(second) == ("one", "1")
