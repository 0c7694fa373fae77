"""What training a model costs: torch's counts against counts by hand, and what counting itself may cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from node.config import ModelSection
from node.learn import models
from node.learn.cost import _Counter, training_flops
from node.learn.models import Model


def lenet5(channels: int, side: int) -> nn.Module:
    """LeNet with two unpadded 5x5 convolutions and three dense layers: the one that hand counts are known for."""
    left = (((side - 4) // 2) - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * left * left, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def padded_lenet5() -> nn.Module:
    """The same for 28x28: its first convolution pads them to 32x32."""
    layers = lenet5(1, 32)
    layers[0] = nn.Conv2d(1, 6, 5, padding=2)
    return layers


def forward_flops(model: Model, shape: tuple[int, ...]) -> float:
    with torch.no_grad(), _Counter() as counter:
        model.logits(model.initial(0), torch.zeros(1, *shape))
    return counter.flops


HAND = {
    "mlp": (models.build(ModelSection(name="mlp", hidden=(128, 64)), (64,), 10), (64,), 17_024),
    "lenet 1x28x28": (Model("lenet5", padded_lenet5), (1, 28, 28), 416_520),
    "lenet 3x32x32": (Model("lenet5", lambda: lenet5(3, 32)), (3, 32, 32), 651_720),
}


@pytest.mark.parametrize("which", HAND)
def test_a_forward_pass_is_twice_the_multiply_adds_counted_by_hand(which):
    model, shape, multiply_adds = HAND[which]
    assert forward_flops(model, shape) == 2 * multiply_adds


@pytest.mark.parametrize("which", HAND)
def test_training_is_three_forward_passes_less_the_gradient_of_the_inputs(which):
    model, shape, multiply_adds = HAND[which]
    first_layer = {"mlp": 64 * 128, "lenet 1x28x28": 28 * 28 * 6 * 25, "lenet 3x32x32": 28 * 28 * 6 * 75}[which]
    assert training_flops(model, shape) == 2 * (3 * multiply_adds - first_layer)


def test_softmax_by_hand():
    model = models.build(ModelSection(name="softmax"), (1, 8, 8), 10)
    assert training_flops(model, (1, 8, 8)) == 2 * 2 * 640


def test_bundled_models_cost_more_the_more_they_do():
    costs = [training_flops(models.build(ModelSection(name=name), (3, 32, 32), 10), (3, 32, 32)) for name in BUNDLED]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)


BUNDLED = ["softmax", "mlp", "lenet", "resnet8"]


class Elementwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, features):
        return features * self.scale


def test_a_model_without_products_counts_its_parameters():
    assert training_flops(Model("elementwise", Elementwise), (10,)) == 6 * 10


class Attentive(nn.Module):
    """No layer that a formula by layer would know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, features):
        return torch.einsum("bij,jk->bik", features, self.weight).mean(1)


def test_products_outside_of_layers_count():
    model = Model("attentive", Attentive)
    assert forward_flops(model, (6, 4)) == 2 * 6 * 4 * 4
    assert training_flops(model, (6, 4)) == 2 * (2 * 6 * 4 * 4)


def test_counting_leaves_the_generator_alone_and_comes_out_the_same_without_gradients():
    model, shape, _ = HAND["mlp"]
    state = torch.random.get_rng_state()
    with torch.no_grad():
        counted = training_flops(model, shape)
    assert torch.equal(state, torch.random.get_rng_state())
    assert counted == training_flops(model, shape)


def test_counting_imports_no_compiler():
    code = (
        "import sys\n"
        "from node.config import ModelSection\n"
        "from node.learn import models\n"
        "from node.learn.cost import training_flops\n"
        "assert training_flops(models.build(ModelSection(name='lenet'), (1, 8, 8), 10), (1, 8, 8)) > 0\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'sympy', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
