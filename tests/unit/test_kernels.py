import json
import os

import pytest
import torch
from torch import nn

from node.config import ModelSection, TrainingSection
from node.errors import ConfigError
from node.learn import kernels
from node.learn.choices import Choices, cache_folder
from node.learn.kernels import OneByOne, automatic, candidates, pinned
from node.learn.models import Model, build
from node.learn.slabs import LEAST_ROWS, gather
from node.learn.trial import Trial
from node.learn.vectorised import VmapKernel
from node.learn.workload import prepare_torch

CPU = torch.device("cpu")
FEATURES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "starling" / "kernels.json"


def normed(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, classes))


def branching(shape, classes):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, classes)

        def forward(self, features):
            logits = self.linear(features.flatten(1))
            return logits if float(logits.detach().sum()) > 0 else 2 * logits

    return Branching()


def model_of(name="mlp", hidden=(16,)):
    return build(ModelSection(name=name, hidden=hidden), (1, 8, 8), 5)


def chosen(model, section=None):
    return automatic(model, section or TrainingSection(), FEATURES, LABELS)


def names(model, device=CPU):
    return [kernel.name for kernel in candidates(model, TrainingSection(), (1, 8, 8), device)]


class Broken(OneByOne):
    """Fast, and wrong: it does nothing."""

    def __init__(self, model, section, does):
        super().__init__(model, section, "loop")
        self.name = "broken"
        self.does = does

    def train(self, slab, batches, lr, proximal):
        self.does(slab)


def raising(slab):
    raise RuntimeError("no such kernel")


# Candidates


def test_there_is_a_kernel_for_every_kind_of_model():
    assert names(model_of("softmax")) == ["loop", "stacked-8", "stacked-16", "stacked-32", "stacked-64"]
    assert names(model_of("lenet")) == names(model_of("resnet8")) == ["loop", "channels-last", "vmap-8", "vmap-32"]
    assert names(model_of(f"{__name__}:normed")) == ["loop", "vmap-8", "vmap-32"]


def test_what_is_large_is_not_vectorised_on_a_processor():
    large = Model("large", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2_000), nn.Tanh(), nn.Linear(2_000, 5)))
    assert names(large) == ["loop"]
    batch = TrainingSection(batch_size=1_000)
    assert [kernel.name for kernel in candidates(model_of(f"{__name__}:normed"), batch, (1, 8, 8), CPU)] == ["loop"]
    assert names(large, torch.device("cuda"))[1:] == ["vmap-8", "vmap-32"]


# By name


def test_pinned_kernels():
    section = TrainingSection()
    for name, kind, expected in (
        ("mlp", "loop", "loop"),
        ("mlp", "stacked", "stacked-64"),
        ("softmax", "vmap", "vmap-32"),
        ("lenet", "loop", "loop"),
        ("resnet8", "channels-last", "channels-last"),
        (f"{__name__}:normed", "vmap", "vmap-32"),
    ):
        assert pinned(kind, model_of(name), section, (1, 8, 8), CPU).name == expected


@pytest.mark.parametrize(
    ("width", "rows"), [(8, 64), (500, (2 << 20) // (4 * (500 * 70 + 5))), (50_000, 8)], ids=["small", "", "large"]
)
def test_larger_models_make_smaller_calls(width, rows):
    kernel = pinned("stacked", model_of("mlp", (width,)), TrainingSection(), (1, 8, 8), CPU)
    assert kernel.most_rows == rows
    assert kernel.name == f"stacked-{rows}"


@pytest.mark.parametrize("kind", ["vmap", "stacked", "channels-last", "STACKED", ""])
def test_a_kernel_that_the_model_cannot_have_is_refused_in_one_line(kind):
    with pytest.raises(ConfigError) as caught:
        pinned(kind, model_of(f"{__name__}:branching"), TrainingSection(), (1, 8, 8), CPU)
    assert str(caught.value) == (f"executor.kernel: {kind!r} cannot train '{__name__}:branching'; auto and loop can")


# By trial


def test_the_trial_chooses_among_what_there_is():
    assert chosen(model_of("mlp")).name.startswith("stacked-")
    assert chosen(model_of("lenet")).name in ("loop", "channels-last", "vmap-8", "vmap-32")
    assert chosen(model_of(f"{__name__}:normed")).name in ("loop", "vmap-8", "vmap-32")
    assert chosen(model_of(f"{__name__}:branching")).name == "loop"


@pytest.mark.parametrize(
    "training",
    [{}, {"optimizer": "adam"}, {"momentum": 0.9, "weight_decay": 0.01}, {"lr": 30.0}, {"local_epochs": 2}],
    ids=["sgd", "adam", "momentum", "lr", "epochs"],
)
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_every_bundled_kernel_agrees_with_the_reference(name, training):
    model, section = model_of(name), TrainingSection(**training)
    trial = Trial(model, section, FEATURES, LABELS)
    reference, *others = candidates(model, section, (1, 8, 8), CPU)
    assert all(trial._agrees(kernel, reference) for kernel in others)


@pytest.mark.parametrize(
    "does", [lambda slab: None, raising, lambda slab: slab.add_(1), lambda slab: slab.fill_(torch.nan)]
)
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_a_kernel_that_is_wrong_or_fails_never_wins(name, does):
    model, section = model_of(name), TrainingSection(batch_size=4, local_steps=1)
    kernels = [OneByOne(model, section, "loop"), Broken(model, section, does)]
    assert list(Trial(model, section, FEATURES, LABELS).ranked(kernels)) == kernels[:1]


def test_the_faster_of_two_right_ones_wins():
    model, section = model_of(), TrainingSection()
    trial = Trial(model, section, FEATURES, LABELS)
    first, second = (OneByOne(model, section, "loop") for _ in range(2))
    trial._measured = lambda kernels: {first: 2.0, second: 1.0}
    assert list(trial.ranked([first, second])) == [second, first]
    trial._measured = lambda kernels: {first: 1.0, second: 2.0}
    assert list(trial.ranked([first, second])) == [first, second]


def test_what_takes_long_is_measured_once(monkeypatch):
    model = model_of()
    section = TrainingSection(local_steps=2)
    trial = Trial(model, section, FEATURES, LABELS)
    asked = []

    def seconds(kernel, steps):
        asked.append(steps)
        return 0.6

    monkeypatch.setattr(trial, "_seconds", seconds)
    kernel = OneByOne(model, section, "loop")
    assert trial._measured([kernel]) == {kernel: 0.6 / kernel.most_rows}
    assert asked == [1, 1, 2]
    asked.clear()
    assert len(trial._measured([kernel, OneByOne(model, section, "loop")])) == 2
    assert asked == [1] * 4


def test_fewer_samples_than_a_batch_are_enough_for_a_trial():
    kernel = automatic(model_of(), TrainingSection(batch_size=500), FEATURES[:3], LABELS[:3])
    assert kernel.name.startswith("stacked-")


# What is remembered


def test_the_choice_is_kept_and_used_again(cache, monkeypatch):
    first = chosen(model_of())
    assert list(json.loads(cache.read_text()).values()) == [first.name]
    monkeypatch.setattr(kernels, "Trial", None)
    assert chosen(model_of()).name == first.name


def test_what_was_kept_is_believed(cache):
    chosen(model_of())
    key, _ = json.loads(cache.read_text()).popitem()
    cache.write_text(json.dumps({key: "loop"}))
    assert chosen(model_of()).name == "loop"


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"x": 3}', "\x00"])
def test_a_corrupt_file_is_ignored_and_rewritten(cache, content):
    cache.parent.mkdir()
    cache.write_text(content)
    kernel = chosen(model_of())
    assert kernel.name in json.loads(cache.read_text()).values()


def test_a_kept_kernel_that_there_is_not_is_chosen_anew(cache):
    chosen(model_of())
    key, name = json.loads(cache.read_text()).popitem()
    cache.write_text(json.dumps({key: "faster-than-light"}))
    assert chosen(model_of()).name.startswith("stacked-")
    assert json.loads(cache.read_text())[key] != "faster-than-light"
    assert name.startswith("stacked-")


@pytest.mark.parametrize(
    ("model", "section"),
    [
        (model_of("mlp", (17,)), TrainingSection()),
        (model_of("softmax"), TrainingSection()),
        (model_of(), TrainingSection(batch_size=8)),
        (model_of(), TrainingSection(optimizer="adam")),
    ],
    ids=["width", "model", "batch", "optimizer"],
)
def test_everything_that_speed_depends_on_has_a_choice_of_its_own(cache, model, section):
    chosen(model_of())
    chosen(model, section)
    assert len(json.loads(cache.read_text())) == 2


def test_what_speed_does_not_depend_on_shares_a_choice(cache):
    chosen(model_of())
    chosen(model_of(), TrainingSection(lr=0.3, schedule="cosine"))
    assert len(json.loads(cache.read_text())) == 1


def test_the_source_of_one_s_own_module_is_in_the_key(monkeypatch):
    model = model_of(f"{__name__}:branching")
    key = kernels._key(model, TrainingSection(), (1, 8, 8), CPU)
    assert key == kernels._key(model, TrainingSection(), (1, 8, 8), CPU)
    monkeypatch.setattr(kernels, "getsource", lambda kind: "another forward pass")
    assert key != kernels._key(model, TrainingSection(), (1, 8, 8), CPU)


def test_a_folder_that_cannot_be_written_to_only_means_another_trial(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    choices = Choices(blocked / "starling" / "kernels.json")
    choices.keep("a", "b")
    assert choices.get("a") is None


def test_choices_are_added_and_replaced_whole(tmp_path):
    choices = Choices(tmp_path / "deep" / "kernels.json")
    choices.keep("a", "1")
    choices.keep("b", "2")
    Choices(tmp_path / "deep" / "kernels.json").keep("a", "3")
    assert [choices.get(key) for key in "abc"] == ["3", "2", None]
    assert os.listdir(tmp_path / "deep") == ["kernels.json"]


def test_the_cache_folder_is_xdg_s(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", "/home/someone")
    for given in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert str(cache_folder()) == "/home/someone/.cache"


# One by one


def test_one_by_one_needs_no_filling_and_stacked_kernels_do():
    model, section = model_of(), TrainingSection()
    assert OneByOne(model, section, "loop").least_rows == 1
    assert all(kernel.least_rows == LEAST_ROWS for kernel in candidates(model, section, (1, 8, 8), CPU)[1:])
    assert VmapKernel(model, section, 8).least_rows == LEAST_ROWS


@pytest.mark.parametrize("name", ["loop", "channels-last"])
def test_one_by_one_leaves_the_gaps_of_a_slab_alone(name):
    model, section = model_of("lenet"), TrainingSection()
    trial = Trial(model, section, FEATURES, LABELS)
    slab = trial._trained(OneByOne(model, section, name), 3, 2)
    assert slab.shape == (3, model.dimension)
    beyond = slab.as_strided((2, slab.stride(0) - model.dimension), (slab.stride(0), 1), model.dimension)
    assert not beyond.any()
    assert not torch.equal(slab[0], gather([model.initial(0)])[0])
