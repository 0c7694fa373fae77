import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from node.learn.architectures import lenet, multilayer, resnet8
from node.learn.layers import Autograd, network
from node.learn.models import Model
from node.learn.workload import prepare_torch


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def convolutional(norm=True, first_relu=False, **options):
    layers = [nn.Conv2d(2, 4, 3, **options), *([nn.GroupNorm(2, 4)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*([nn.ReLU()] if first_relu else []), *layers, nn.Flatten(), nn.LazyLinear(3))


def ready(module, shape=(2, 8, 8)):
    """A module whose lazy layers have found their sizes."""
    with torch.no_grad():
        module(torch.zeros(2, *shape))
    return module


def samples(count, shape=(2, 8, 8), classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def is_written(model):
    return not isinstance(network(model), Autograd)


def parameters(model, seed=0):
    return list(model.named(model.initial(seed)).values())


def assert_equal_passes(model, features, labels):
    at = parameters(model)
    written, reference = network(model), Autograd(model)
    assert is_written(model)
    with torch.no_grad():
        assert torch.equal(written.logits(at, features), reference.logits(at, features))
        found, expected = (passes.at(at)(features, labels) for passes in (written, reference))
    assert len(found) == len(expected) == len(at)
    for one, other, parameter in zip(found, expected, at, strict=True):
        assert one.shape == parameter.shape
        assert torch.equal(one, other)


WRITTEN = {
    "convolution": lambda: convolutional(),
    "without norm": lambda: convolutional(norm=False),
    "strides": lambda: convolutional(stride=2, padding=1),
    "groups": lambda: convolutional(groups=2),
    "dilation": lambda: convolutional(dilation=2, padding=2),
    "no bias": lambda: convolutional(bias=False),
    "layers before the first parameter": lambda: convolutional(first_relu=True),
    "pooling that overlaps": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.LazyLinear(3)
    ),
    "pooling first": lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.LazyLinear(3)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Flatten(), nn.LazyLinear(7)), nn.Identity(), nn.Linear(7, 3)),
    "linear without bias": lambda: nn.Sequential(
        nn.Flatten(), nn.LazyLinear(5, bias=False), nn.ReLU(), nn.Linear(5, 3)
    ),
    "norm of one group": lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten(), nn.LazyLinear(3)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_out_has_autograd_s_bits(name):
    assert_equal_passes(Model(name, lambda: ready(WRITTEN[name]())), *samples(6))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("count", [1, 8])
def test_the_bundled_network_has_autograd_s_bits(shape, count):
    assert_equal_passes(Model("lenet", lambda: lenet(shape, 10)), *samples(count, shape, 10))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(1, 33))
@settings(max_examples=30, deadline=None)
def test_any_dense_network_has_autograd_s_bits(widths, count):
    model = Model("dense", lambda: multilayer(tuple(widths)))
    assert_equal_passes(model, *samples(count, (widths[0],), widths[-1], seed=count))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_ties_under_pooling_go_where_autograd_sends_them(seed):
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Conv2d(1, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)]
    model = Model("ties", lambda: nn.Sequential(*layers))
    features = torch.randint(-1, 2, (5, 1, 4, 4), generator=generator).float()
    assert_equal_passes(model, features, torch.randint(0, 2, (5,), generator=generator))


def test_channels_side_by_side_agree_up_to_rounding():
    model = Model("lenet", lambda: lenet((3, 16, 16), 10))
    features, labels = samples(8, (3, 16, 16), 10)
    plain = parameters(model)
    arranged = [part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part for part in plain]
    with torch.no_grad():
        expected = network(model).at(plain)(features, labels)
        found = network(model).at(arranged)(features.contiguous(memory_format=torch.channels_last), labels)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_parameters_may_change_between_two_steps():
    for make in (lambda: multilayer((6, 4, 3)), lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh())):
        model = Model("dense", make)
        at = parameters(model)
        differentiate = network(model).at(at)
        features, labels = samples(4, (6,), 3)
        with torch.no_grad():
            first = differentiate(features, labels)
            torch._foreach_add_(at, first, alpha=-0.5)
            second = differentiate(features, labels)
            expected = network(model).at([part.clone() for part in at])(features, labels)
        assert not any(map(torch.equal, first, second))
        assert all(map(torch.equal, second, expected))


def test_neither_features_nor_parameters_are_changed():
    model = Model("relu first", lambda: ready(convolutional(first_relu=True)))
    features, labels = samples(4)
    at = parameters(model)
    before = [tensor.clone() for tensor in (features, *at)]
    with torch.no_grad():
        network(model).at(at)(features, labels)
    assert all(map(torch.equal, (features, *at), before))


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return nn.Sequential(nn.Flatten(), layer)


def parametrized():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Half())
    return nn.Sequential(nn.Flatten(), layer)


def own_linear():
    class Doubled(nn.Linear):
        def forward(self, features):
            return 2 * super().forward(features)

    return nn.Sequential(nn.Flatten(), Doubled(4, 4))


AUTOGRAD = {
    "a layer twice": shared,
    "a hook": hooked,
    "a parametrized layer": parametrized,
    "a layer of one's own": own_linear,
    "an unknown layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh()),
    "linear before it is flat": lambda: nn.Sequential(nn.Linear(2, 2), nn.Flatten()),
    "flattened in part": lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, 4)),
}


@pytest.mark.parametrize("name", AUTOGRAD)
def test_everything_else_is_autograd_s(name):
    model = Model(name, AUTOGRAD[name])
    assert not is_written(model)
    features, labels = samples(5, (2, 2), 4)
    at = parameters(model)
    module = AUTOGRAD[name]()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), at, strict=True):
            parameter.copy_(value)
    cross_entropy(module(features), labels).backward()
    found = network(model).at(at)(features, labels)
    for gradient, parameter in zip(found, module.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=["same", "circular"]
)
def test_other_kinds_of_padding_are_autograd_s(options):
    assert not is_written(Model("padded", lambda: ready(convolutional(**options))))


def test_networks_with_branches_are_autograd_s():
    assert not is_written(Model("resnet8", lambda: resnet8((3, 8, 8), 10)))
