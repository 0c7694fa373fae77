"""Uploads that are added up as they come: the same bits as all at once, and a memory that clients do not fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.assumptions import Assumptions
from node.config import ModelSection
from node.learn import models
from node.learn.oneshot.algorithm import Assets, Streaming, Task, Upload
from node.learn.oneshot.averaging import Average, TaskArithmetic, WeightedAverage
from node.op import Key, Spec
from oneshots import Run, mod
from protocols.turns import Turns

MODEL = models.build(ModelSection(name="mlp", hidden=(5,)), (1, 8, 8), 10)
TASK = Task(MODEL, (1, 8, 8), 10)
MODEL_BYTES = MODEL.spec.size_bytes


class Rolling(Streaming):
    """Every upload counts with a number drawn for it: the order must not matter to which."""

    declares = Assumptions()

    def state(self, task):
        return Spec((task.model.dimension,), "float64")

    def add(self, state, upload, assets):
        return state + float(assets.rng.random()) * upload.model

    def finish(self, state, assets):
        return state


def assets(own, counter=0):
    return Assets("it", own.declares, TASK, MODEL.initial(0), None, Key(4, 0, counter), 4)


def uploads(own, clients, seed=0):
    made = []
    for client in clients:
        flat = torch.from_numpy(np.random.default_rng([seed, client]).normal(size=MODEL.dimension).astype(np.float32))
        made.append(Upload("it", own.declares, client, flat, {}, 10 + client, (), 0.0))
    return made


@pytest.mark.parametrize("kind", [Average, WeightedAverage, TaskArithmetic, Rolling])
def test_one_by_one_is_all_at_once_to_the_last_bit(kind):
    own = kind()
    some = uploads(own, [2, 3, 7, 40])
    whole = own.aggregate(some, assets(own))
    state = own.nothing(TASK)
    for i, upload in enumerate(some):
        before = state.clone()
        after = own.add(state, upload, assets(own, counter=100 + i).beside(upload.client))
        assert torch.equal(state, before)  # a solved value is never changed
        assert (tuple(after.shape), str(after.dtype)) == (own.state(TASK).shape, f"torch.{own.state(TASK).dtype}")
        state = after
    assert torch.equal(own.finish(state, assets(own, counter=3)), whole)


def test_what_is_drawn_for_an_upload_depends_on_nobody_else():
    own = Rolling()
    one, other = (own.aggregate(uploads(own, clients), assets(own)) for clients in ([1, 2], [2]))
    assert torch.equal(one - other, own.aggregate(uploads(own, [1]), assets(own)))


@given(st.permutations(range(8)), st.integers(1, 8), st.sets(st.integers(0, 7)))
def test_everybody_has_one_turn_and_nobody_waits_beyond_the_window(order, window, absent):
    taken = []
    turns = Turns(range(8), window, lambda sender, item: taken.append((sender, item)))
    for sender in order:
        if sender not in absent:
            turns.put(sender, sender * 10)
            assert len(turns) <= window
    turns.finish()
    assert sorted(taken) == [(sender, sender * 10) for sender in range(8) if sender not in absent]
    if window == 8:
        assert taken == sorted(taken)


def test_who_comes_again_has_another_turn():
    taken = []
    turns = Turns([1, 2], 2, lambda sender, item: taken.append((sender, item)))
    for sender, item in ((1, "a"), (1, "b"), (2, "c"), (2, "d")):
        turns.put(sender, item)
    turns.finish()
    assert taken == [(1, "a"), (1, "b"), (2, "c"), (2, "d")]


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(1, 7)))
def test_uploads_in_any_order_lead_to_the_same_bits(order):
    rules = [{"kind": "delay", "value": float(i), "frm": [client], "to": [0]} for i, client in enumerate(order)]
    run = Run(protocol={"algorithm": "average"}, network={"rules": rules})
    assert run.models[0] == in_order().models[0]


def in_order():
    return Run(protocol={"algorithm": "average"})


def many(clients, **protocol):
    small = {"data": {"name": "synthetic", "samples": 4 * clients, "partition": "iid"}}
    return Run(nodes=clients + 1, protocol=protocol, training={"local_steps": 1}, model={"hidden": [4]}, **small)


@pytest.mark.parametrize("window", [8, 64])
def test_what_a_thousand_clients_leave_at_the_aggregator(window):
    """A sum holds the window and no more; an ensemble is all models; the trimmed mean needs them all."""
    sizes = {}
    for algorithm in ("average", "ensemble-probabilities", "trimmed-average"):
        run = many(1000, algorithm=algorithm, window=window)
        assert run.metric("uploads") == 1000
        one = run.own["uploaded_bytes"]["model"]["most"]
        sizes[algorithm] = run.metric("held_bytes") / one
    assert sizes["average"] <= 2 * window + 3
    assert sizes["ensemble-probabilities"] == sizes["trimmed-average"] == 1000


def test_what_is_not_sound_is_not_added():
    run = Run(protocol={"algorithm": "average"}, mods=[mod("Changing", 1, what="number")])
    silent = Run(protocol={"algorithm": "average", "deadline_s": 9.0}, mods=[mod("Changing", 1, what="nothing")])
    assert run.models[0] == silent.models[0]
    assert np.isfinite(np.frombuffer(run.models[0], np.float32)).all()
