import pytest
import torch
from torch import nn

from node.config import ModelSection
from node.errors import ConfigError
from node.learn import models
from node.learn.models import Dense, build
from node.learn.workload import prepare_torch

BUNDLED = ["softmax", "mlp", "lenet", "resnet8"]


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def made(name, shape=(1, 8, 8), classes=10, **options):
    return build(ModelSection(name=name, **options), shape, classes)


def two_layers(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 5), nn.Tanh(), nn.Linear(5, classes))


def with_batch_norm(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, classes))


def with_dropout(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, classes))


def in_double(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double()


def without_parameters(shape, classes):
    return nn.Flatten()


def too_wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))


def for_other_samples(shape, classes):
    return nn.Linear(7, classes)


def not_a_module(shape, classes):
    return "a string"


@pytest.mark.parametrize(
    ("name", "shape", "dimension"),
    [
        ("softmax", (64,), 650),
        ("mlp", (64,), 9_610),
        ("lenet", (3, 32, 32), 89_834),
        ("resnet8", (3, 32, 32), 77_850),
    ],
)
def test_the_known_sizes(name, shape, dimension):
    model = made(name, shape)
    assert model.dimension == dimension
    assert model.spec.shape == (dimension,)
    assert model.spec.size_bytes == 4 * dimension


def test_hidden_widths_shape_the_mlp():
    model = made("mlp", (3, 4), 5, hidden=(7, 6))
    assert isinstance(model, Dense)
    assert model.widths == (12, 7, 6, 5)
    assert model.dimension == 12 * 7 + 7 + 7 * 6 + 6 + 6 * 5 + 5


@pytest.mark.parametrize("name", BUNDLED)
def test_initial_depends_on_the_seed_alone(name):
    model = made(name)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = model.initial(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(model.initial(5), first)
    assert torch.equal(made(name).initial(5), first)
    assert not torch.equal(model.initial(6), first)


@pytest.mark.parametrize("name", BUNDLED)
def test_initial_is_one_plain_float32_vector(name):
    model = made(name)
    flat = model.initial(2**63 - 1)
    assert flat.shape == (model.dimension,)
    assert flat.dtype == torch.float32
    assert not flat.requires_grad


@pytest.mark.parametrize("name", BUNDLED)
def test_logits_are_the_module_s(name):
    model = made(name)
    flat = model.initial(3)
    features = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model._seeded(3)(features)
        torch.testing.assert_close(model.logits(flat, features), expected, rtol=0, atol=0)


def test_named_gives_views_in_the_module_s_order():
    model = made("mlp")
    flat = model.initial(0)
    named = model.named(flat)
    assert [tuple(part.shape) for part in named.values()] == [(128, 64), (128,), (10, 128), (10,)]
    assert torch.equal(torch.cat([part.flatten() for part in named.values()]), flat)
    assert all(part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for part in named.values())


def test_a_module_from_anywhere_on_the_path():
    model = made(f"{__name__}:two_layers")
    assert model.dimension == 64 * 5 + 5 + 5 * 10 + 10
    assert not model.is_convolutional
    assert made("lenet").is_convolutional


def test_an_entry_point(monkeypatch):
    class Point:
        name = "mine"
        value = f"{__name__}:two_layers"

    monkeypatch.setattr(models, "entry_points", lambda group: [Point] if group == "starling.models" else [])
    assert made("mine").dimension == made(f"{__name__}:two_layers").dimension
    with pytest.raises(ConfigError, match=r"mine, mlp, resnet8, softmax"):
        made("nothing-like-it")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenett", (1, 8, 8), r"model.name: no model 'lenett'; did you mean 'lenet'\?"),
        ("zzz", (1, 8, 8), r"there are lenet, mlp, resnet8, softmax, or 'module:callable'"),
        ("no.such.module:thing", (1, 8, 8), "cannot import 'no.such.module:thing'"),
        (f"{__name__}:nothing", (1, 8, 8), "cannot import"),
        (f"{__name__}:with_batch_norm", (1, 8, 8), "buffer '1.running_mean'.*GroupNorm in place of BatchNorm"),
        (f"{__name__}:with_dropout", (1, 8, 8), "Dropout"),
        (f"{__name__}:in_double", (1, 8, 8), "torch.float64 parameters; only float32"),
        (f"{__name__}:without_parameters", (1, 8, 8), "has no parameters"),
        (f"{__name__}:not_a_module", (1, 8, 8), "gives a str, not a torch.nn.Module"),
        (f"{__name__}:too_wide", (1, 8, 8), r"gives \[2, 11\] for 2 samples, not \[2, 10\]"),
        (f"{__name__}:for_other_samples", (1, 8, 8), r"does not take samples of shape \[1, 8, 8\]"),
        (f"{__name__}:two_layers", (64,), r"does not take samples of shape \[64\]"),
        ("lenet", (64,), r"needs images.*at least 8x8; the samples have shape \[64\]"),
        ("lenet", (1, 7, 8), r"the samples have shape \[1, 7, 8\]"),
        ("resnet8", (1, 3, 3), "at least 4x4"),
    ],
)
def test_bad_models_are_refused_in_one_line(name, shape, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(name, shape)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.name: ")
