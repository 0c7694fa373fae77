import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from node.config import ModelSection, TrainingSection
from node.learn.models import Model, build
from node.learn.training import Trainer
from node.learn.workload import prepare_torch

RULES = {
    "sgd": {},
    "decay": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.003},
    "adam and decay": {"optimizer": "adam", "lr": 0.003, "weight_decay": 0.01},
}


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def model_of(name="mlp"):
    return build(ModelSection(name=name, hidden=(32,)), (1, 8, 8), 10)


def batches(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator))
        for _ in range(count)
    ]


def with_torch_optim(model, seed, steps, section, lr):
    """The same steps with a module and an optimizer of torch's own."""
    module = model._seeded(seed)
    if section.optimizer == "adam":
        optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=section.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            module.parameters(), lr=lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
    for features, labels in steps:
        optimizer.zero_grad()
        cross_entropy(module(features), labels).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def train(model, start, steps, section, lr, proximal=0.0):
    return Trainer(model, section).train(start, steps, lr, proximal)


def evaluate(model, flat, features, labels):
    return Trainer(model, TrainingSection()).evaluate(flat, features, labels)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet"])
def test_twenty_steps_are_torch_optim_s_bit_for_bit(name, rule):
    section = TrainingSection(**RULES[rule])
    model = model_of(name)
    steps = batches(20, size=8)
    trained = train(model, model.initial(3), steps, section, section.lr)
    assert torch.equal(trained, with_torch_optim(model, 3, steps, section, section.lr))


@pytest.mark.parametrize("rule", RULES)
def test_the_start_is_left_alone_and_the_result_is_plain(rule):
    section = TrainingSection(**RULES[rule])
    model = model_of()
    start = model.initial(1)
    before = start.clone()
    trained = train(model, start, batches(3), section, 0.1, proximal=0.5)
    assert torch.equal(start, before)
    assert not torch.equal(trained, start)
    assert not trained.requires_grad
    assert trained.shape == start.shape


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_optimizer_state_starts_anew_with_every_call(rule):
    section = TrainingSection(**RULES[rule])
    model = model_of()
    start = model.initial(0)
    both = train(model, start, batches(2), section, 0.05)
    first, second = batches(2)
    apart = train(model, train(model, start, [first], section, 0.05), [second], section, 0.05)
    assert not torch.equal(both, apart)
    assert torch.equal(apart, train(model, train(model, start, [first], section, 0.05), [second], section, 0.05))


def test_no_step_gives_an_equal_model():
    model = model_of()
    start = model.initial(0)
    assert torch.equal(train(model, start, [], TrainingSection(), 0.1), start)


def test_a_learning_rate_of_zero_changes_nothing():
    model = model_of()
    start = model.initial(0)
    for rule in RULES.values():
        assert torch.equal(train(model, start, batches(2), TrainingSection(**rule), 0.0), start)


def test_the_proximal_term_adds_its_own_gradient():
    model = model_of("softmax")
    start = model.initial(0)
    steps = batches(2)
    weights = start.clone()
    for features, labels in steps:
        weights.requires_grad_()
        loss = cross_entropy(model.logits(weights, features), labels) + 0.5 * 0.7 * (weights - start).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.1 * gradient).detach()
    trained = train(model, start, steps, TrainingSection(), 0.1, proximal=0.7)
    torch.testing.assert_close(trained, weights, rtol=1e-5, atol=1e-6)


def test_a_strong_proximal_term_stays_nearer():
    model = model_of()
    start = model.initial(0)
    steps = batches(10)
    free = train(model, start, steps, TrainingSection(), 0.1)
    held = train(model, start, steps, TrainingSection(), 0.1, proximal=5.0)
    assert (held - start).norm() < 0.5 * (free - start).norm()


def test_a_parameter_that_the_logits_ignore_stays_as_it_is():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(64, 10)

        def forward(self, features):
            return self.linear(features.flatten(1))

    model = Model("idle", Idle)
    trained = train(model, model.initial(0), batches(2), TrainingSection(), 0.1)
    assert torch.equal(model.named(trained)["idle"], torch.ones(3))


def test_training_works_where_gradients_are_off():
    model = model_of()
    with torch.no_grad():
        trained = train(model, model.initial(0), batches(1), TrainingSection(), 0.1)
    assert torch.equal(trained, train(model, model.initial(0), batches(1), TrainingSection(), 0.1))


@pytest.mark.parametrize("samples", [1, 100, 512, 513, 1_500])
def test_evaluate_is_the_mean_over_all_samples(samples):
    model = model_of()
    flat = model.initial(4)
    ((features, labels),) = batches(1, size=samples)
    with torch.no_grad():
        logits = model.logits(flat, features)
    metrics = evaluate(model, flat, features, labels)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics["loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert all(type(value) is float for value in metrics.values())


def test_a_tie_counts_for_the_first_class_only():
    model = model_of("softmax")
    labels = torch.tensor([0, 0, 0, 1, 9])
    metrics = evaluate(model, torch.zeros(model.dimension), torch.randn(5, 1, 8, 8), labels)
    assert metrics["accuracy"] == pytest.approx(0.6)
