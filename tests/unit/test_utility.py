"""What Oort asks of a node: the root mean square of a model's losses on a batch of its training data."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from node import Protocol
from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import federate
from node.learn.evaluation import UTILITY
from node.learn.models import build
from node.learn.workload import Workload
from node.op import Key, Task
from node.testing import Quadratic, check_op, run_protocol

NODES = 4


def workload(batch_size=16, **training):
    federation = federate(DataSection(), NODES, 0)
    model = build(ModelSection(name="softmax"), tuple(federation.train.features.shape[1:]), federation.train.classes)
    return Workload(federation, model, TrainingSection(batch_size=batch_size, **training), 3), federation


def utility(work, model, node=0, counter=0):
    return work.utility.solve(Task((model,), {}, Key(3, node, counter)))["utility"]


def trained(work, node, steps):
    initial = work.init.solve(Task((), {}, Key(3, 0, 0)))
    return work.train.solve(Task((initial,), {"steps": steps, "lr": 0.5, "proximal": 0.0}, Key(3, node, 0)))


def test_a_batch_of_everything_has_the_root_mean_square_of_all_losses():
    work, federation = workload(batch_size=10**6)
    model = trained(work, 1, 3)
    rows = federation.shards.of(1)
    features, labels = federation.train.features[rows], federation.train.labels[rows]
    weight, bias = model[: -federation.train.classes], model[-federation.train.classes :]
    logits = features.flatten(1) @ weight.view(federation.train.classes, -1).T + bias
    expected = float(cross_entropy(logits, labels, reduction="none").square().mean().sqrt())
    assert utility(work, model, 1) == pytest.approx(expected, rel=1e-5)


def test_an_untrained_model_has_the_loss_of_guessing_everywhere():
    work, federation = workload()
    zero = torch.zeros(work.model_spec.shape)
    assert utility(work, zero) == pytest.approx(np.log(federation.train.classes))


def test_what_has_been_learned_is_of_less_use():
    work, _ = workload()
    values = [utility(work, trained(work, 2, steps), 2) for steps in (1, 20, 200)]
    assert values == sorted(values, reverse=True)


def test_every_reading_takes_a_batch_of_its_own():
    work, _ = workload(batch_size=4)
    model = trained(work, 0, 5)
    assert len({utility(work, model, counter=counter) for counter in range(5)}) == 5
    assert utility(work, model, counter=2) == utility(work, model, counter=2)


def test_the_op_is_pure_and_keeps_to_its_spec():
    work, _ = workload()
    check_op(work.utility, [trained(work, 0, 2)], seed=3)
    assert work.utility.spec([work.model_spec], {}) == UTILITY
    assert work.utility in work.ops


def test_what_is_kept_on_disk_goes_by_the_batch_size():
    digests = []
    for batch_size in (4, 8):
        work, _ = workload(batch_size)
        work.arithmetic(batched=False)
        digests.append(work.utility.basis(Key(3, 0, 0)))
    assert digests[0] != digests[1]


def test_a_broken_model_has_no_utility():
    work, _ = workload()
    assert np.isnan(utility(work, torch.full(work.model_spec.shape, torch.nan)))


def test_the_closed_form_workload_has_the_loss_of_its_one_sample():
    work = Quadratic(4, [[0.0], [2.0], [-4.0], [1.0]])
    check_op(work.utility, [np.array([1.0])])
    assert [utility(work, np.zeros(1), node) for node in range(4)] == [0.0, 2.0, 8.0, 0.5]


def test_a_context_reads_it_and_says_how_many_steps_a_training_has():
    seen = {}

    class Reads(Protocol):
        async def run(self, ctx):
            before = ctx.now
            value = await ctx.value(ctx.utility(ctx.initial_model()))
            seen[ctx.me] = (value["utility"], ctx.steps, ctx.now - before)

    class Twice(Quadratic):
        def steps(self, node):
            return 2 + node

    run_protocol(Reads(), 2, workload=Twice(2, [[0.0], [2.0]]))
    assert seen == {0: (0.0, 2, 0.0), 1: (2.0, 3, 0.0)}
