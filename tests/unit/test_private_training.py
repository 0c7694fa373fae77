"""DP-SGD as a workload's training, and noise on whole nodes' updates: what is drawn, what is guided, what is kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from node.config import DataSection, ModelSection, PrivacySection, TrainingSection
from node.errors import ComputeError, ConfigError
from node.learn.data import Federation, load
from node.learn.models import Model, build
from node.learn.partition import Shards
from node.learn.training import Guide, Trainer
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.privacy.clipping import noised_update
from node.privacy.dpsgd import PrivateTrainer
from node.privacy.node_noise import NodeNoise
from node.privacy.noise import Keystream, Seeded, secret, seeded
from node.privacy.training import PrivateTraining, source
from node.testing import run_protocol
from protocols.dpsgd import DPSGD

SIZES = [40, 16, 7]
TRAIN, TEST = load(DataSection(), 0)
DATA = Federation(
    TRAIN, TEST, Shards(np.cumsum([0, *SIZES]), np.arange(sum(SIZES))), Shards(np.zeros(4, int), np.array([], int))
)
ALMOST_NONE = {"clip": 1e9, "noise_multiplier": 0.0}


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def bundled(name="mlp"):
    return build(ModelSection(name=name, hidden=(16,)), (1, 8, 8), TRAIN.classes)


def workload(noise="seeded", training=None, **privacy):
    model, section = bundled(), TrainingSection(**(training or {}))
    private = PrivateTraining(model, section, PrivacySection(mechanism="record", **privacy), noise)
    return Workload(DATA, model, section, 7, private=private)


def task(work, node=0, counter=1, steps=3, proximal=0.0, **static):
    return Task(
        (work._model.initial(7),), {"steps": steps, "lr": 0.1, "proximal": proximal, **static}, Key(7, node, counter)
    )


def adapted(work, node=0, guides=(), tensors=(), part="all", cut=0, repeats=1, **static):
    given = task(work, node, **static)
    guided = {**given.static, "guides": guides, "part": part, "cut": cut, "repeats": repeats}
    return work.adapt.solve(given._replace(inputs=(*given.inputs, *tensors), static=guided))


def by_hand(work, node=0, counter=1, steps=3, proximal=0.0, guide=None, privacy=None):
    """The same training through the trainer itself."""
    section = PrivacySection(**(privacy or {}))
    trainer = PrivateTrainer(work._model, work._training, section.clip, section.noise_multiplier)
    rows = DATA.shards.of(node)
    rate = min(1.0, work._training.batch_size / len(rows))
    key = Key(7, node, counter)
    data = TRAIN.features[rows], TRAIN.labels[rows]
    start = work._model.initial(7)
    return trainer.train(start, *data, rate, steps, 0.1, key.rng(), Seeded(key), proximal, guide)


# What is drawn


@pytest.mark.parametrize("node", [0, 1, 2])
def test_a_private_task_is_dp_sgd_on_its_node_s_records(node):
    work = workload()
    assert torch.equal(work.train.solve(task(work, node)), by_hand(work, node))


def test_a_task_s_key_is_all_that_seeded_noise_depends_on():
    work = workload()
    first = work.train.solve(task(work))
    torch.manual_seed(5)
    work.train.solve(task(work, counter=2))
    assert torch.equal(work.train.solve(task(work)), first)
    assert torch.equal(workload().train.solve(task(work)), first)
    assert not torch.equal(work.train.solve(task(work, counter=2)), first)


def test_secret_noise_and_batches_never_come_twice():
    work = workload("secret")
    results = [work.train.solve(task(work)) for _ in range(3)]
    assert len({tuple(result.tolist()) for result in results}) == 3
    batches = workload("secret", **ALMOST_NONE)
    assert len({tuple(batches.train.solve(task(work)).tolist()) for _ in range(3)}) == 3
    everybody = [batches.train.solve(task(work, 1)) for _ in range(2)]  # all 16 records, whatever the coins
    assert torch.equal(*everybody)


def test_the_sources_are_what_they_are_called():
    assert source("seeded") is seeded
    assert source("secret") is secret


def test_a_keystream_s_coins_are_fair():
    draws = Keystream(bytes(32)).random(200_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    for rate in (0.01, 0.5, 0.93):
        spread = math.sqrt(rate * (1 - rate) / len(draws))
        assert abs((draws < rate).mean() - rate) < 5 * spread
    assert len(np.unique(draws)) == len(draws)
    assert np.array_equal(draws[:50], Keystream(bytes(32)).random(50))


# What stays as it was


@pytest.mark.parametrize("training", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.01}])
def test_without_noise_and_clipping_it_is_plain_training_on_all_records(training):
    work = workload(training=training, **ALMOST_NONE)
    rows = DATA.shards.of(1)  # as many records as a batch: every step takes all
    data = TRAIN.features[rows], TRAIN.labels[rows]
    plain = Trainer(work._model, work._training).train(work._model.initial(7), [data] * 3, 0.1, 0.2)
    torch.testing.assert_close(work.train.solve(task(work, 1, proximal=0.2)), plain, rtol=1e-4, atol=1e-5)


def test_many_tasks_are_solved_one_by_one():
    work = workload()
    assert work.train.solve_batch is None
    assert work.train.seeded
    assert work.adapt.seeded


def test_a_step_takes_its_expected_batch_s_time():
    work = workload()
    assert [work.samples(node, 5) for node in range(3)] == [5 * 16, 5 * 16, 5 * 7]
    assert work.steps(0) == TrainingSection().local_steps


def test_kept_values_are_of_this_privacy_alone():
    keys = []
    plain = Workload(DATA, bundled(), TrainingSection(), 7)
    for work in (workload(), workload(clip=2.0), workload(noise_multiplier=2.0), workload(gradients="vmap"), plain):
        work.arithmetic(batched=False)
        keys.append((work.basis.of_train(Key(7, 0, 0)), work.basis.of_evaluate(Key(7, 0, 0))))
    assert len({train for train, _ in keys}) == 5
    assert len({evaluate for _, evaluate in keys}) == 1
    again = workload()
    again.arithmetic(batched=False)
    assert again.basis.of_train(Key(7, 0, 0)) == keys[0][0]


def test_warming_up_a_private_workload_works():
    workload().warm_up()


# Guides


def test_pulling_to_another_model():
    work, other = workload(), bundled().initial(9)
    found = adapted(work, guides=("toward",), tensors=(other,), proximal=0.5)
    assert torch.equal(found, by_hand(work, proximal=0.5, guide=Guide(toward=other)))
    assert not torch.equal(found, by_hand(work, proximal=0.5))
    own = adapted(work, guides=("toward",), tensors=(work._model.initial(7),), proximal=0.5)
    assert torch.equal(own, by_hand(work, proximal=0.5))


@pytest.mark.parametrize("part", ["core", "head"])
def test_a_frozen_part_does_not_move_and_the_rest_moves_as_it_would(part):
    work = workload(training={"momentum": 0.9, "weight_decay": 0.1})
    cut = work.cut(1)
    before, found = work._model.initial(7), adapted(work, part=part, cut=cut, steps=1)
    free, frozen = (slice(cut), slice(cut, None)) if part == "core" else (slice(cut, None), slice(cut))
    assert torch.equal(found[frozen], before[frozen])
    assert torch.equal(found, by_hand(work, steps=1, guide=Guide(part=part, cut=cut)))
    assert not torch.equal(found[free], before[free])


def test_a_mask_stops_noise_as_well():
    work = workload(training={"weight_decay": 0.1})
    mask = (torch.arange(work._model.dimension) % 3 == 0).float()
    before, found = work._model.initial(7), adapted(work, guides=("mask",), tensors=(mask,), steps=2)
    assert torch.equal(found[mask == 0], before[mask == 0])
    assert not torch.equal(found[mask == 1], before[mask == 1])


def test_a_correction_is_added_after_the_noise():
    work = workload()
    correction = torch.full((work._model.dimension,), 0.5)
    found = adapted(work, guides=("correction",), tensors=(correction,), steps=1)
    torch.testing.assert_close(found, by_hand(work, steps=1) - 0.1 * correction)


def test_repetitions_are_steps_of_their_own():
    """The same batch again would be a release that nobody has accounted for."""
    work = workload()
    assert torch.equal(adapted(work, steps=2, repeats=3), by_hand(work, steps=6))


# Refused


class Normal(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8, track_running_stats=False)
        )

    def forward(self, features):
        return self.layers(features)


class Mixes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, features):
        return self.layer((features - features.mean(0)).flatten(1))


def test_a_model_that_mixes_records_is_refused():
    with pytest.raises(ConfigError, match=r"model.name: 'normal' has BatchNorm1d, which mixes records; use GroupNorm"):
        PrivateTraining(Model("normal", Normal), TrainingSection(), PrivacySection(), "seeded")
    mixing = Model("mixes", Mixes)
    training = PrivateTraining(mixing, TrainingSection(), PrivacySection(), "seeded")
    rows = slice(0, 20)
    with pytest.raises(ComputeError, match="mixes samples"):
        training.train(mixing.initial(0), TRAIN.features[rows], TRAIN.labels[rows], Key(0, 0, 0), 1, 0.1, 0.0, None)


# Whole nodes


def noised_run(clip=0.5, noise_multiplier=0.5, seed=3):
    op = noised_update(seeded)
    mod = NodeNoise(op, clip, noise_multiplier)
    numpy = _in_numpy(mod, op)
    return run_protocol(DPSGD(DPSGD.Config(rounds=3)), 4, mods=[numpy], seed=seed)


def _in_numpy(mod, op):
    """The testing kit's workload has numpy arrays for models."""

    def solve(task):
        return op.solve(task._replace(inputs=tuple(map(torch.from_numpy, task.inputs)))).numpy()

    mod._op = replace(op, solve=solve)
    return mod


def test_every_training_leaves_its_node_noised():
    """Without noise, and with a long clip, nothing changes; with a short one, nobody gets far."""
    plain = run_protocol(DPSGD(DPSGD.Config(rounds=3)), 4, seed=3)
    free, held, loud = noised_run(1e9, 0.0), noised_run(1e-3, 0.0), noised_run(0.5, 1.0)
    for node, model in plain.models.items():
        np.testing.assert_allclose(free.models[node], model, rtol=1e-5, atol=1e-6)
        assert np.linalg.norm(held.models[node]) <= 3 * 1e-3 * (1 + 1e-6)
        assert not np.allclose(loud.models[node], model)
    assert loud.tasks == plain.tasks + 4 * 3


def test_noise_on_nodes_is_repeatable_and_follows_the_seed():
    one, same, other = noised_run(), noised_run(), noised_run(seed=4)
    assert all(np.array_equal(one.models[node], same.models[node]) for node in one.models)
    assert not any(np.array_equal(one.models[node], other.models[node]) for node in one.models)
