"""What cached values follow from: each ingredient alone changes the digest, and nothing else does."""

import dataclasses

import numpy as np
import pytest
import torch

from node.config import DataSection, ModelSection, TrainingSection
from node.learn import basis as module
from node.learn.basis import Basis
from node.learn.data import Shards, federate
from node.learn.models import Model, build
from node.op import Key

FEDERATION = federate(DataSection(local_test_fraction=0.2), 4, 0)
MODEL = build(ModelSection(), (1, 8, 8), 10)
TRAINING = TrainingSection()
KEY = Key(0, 1, 5)


def digests(federation=FEDERATION, model=MODEL, training=TRAINING, arithmetic="loop", key=KEY):
    basis = Basis(federation, model, training, arithmetic)
    return basis.of_train(key), basis.of_evaluate(key), basis.of_mix(key)


def changed(**what):
    """Which of train, evaluate and mix have another digest after a change."""
    pairs = zip(digests(), digests(**what), strict=True)
    return [name for name, (a, b) in zip(("train", "evaluate", "mix"), pairs, strict=True) if a != b]


def with_features(number, value, part="train"):
    data = getattr(FEDERATION, part)
    features = data.features.clone()
    features[number] = value
    return dataclasses.replace(FEDERATION, **{part: dataclasses.replace(data, features=features)})


def test_nothing_changes_by_itself():
    assert changed() == []


def test_the_kernel_changes_all():
    assert changed(arithmetic="stacked 16") == ["train", "evaluate", "mix"]


def test_the_torch_version_changes_all(monkeypatch):
    before = digests()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert not set(before) & set(digests())


def test_the_code_changes_all(monkeypatch):
    before = digests()
    monkeypatch.setattr(module, "_sources", lambda: b"another line")
    assert not set(before) & set(digests())


def test_the_model_changes_training_and_evaluation():
    assert changed(model=build(ModelSection(hidden=(64,)), (1, 8, 8), 10)) == ["train", "evaluate"]


@pytest.mark.parametrize("key", [{"momentum": 0.5}, {"weight_decay": 0.1}, {"optimizer": "adam"}, {"batch_size": 8}])
def test_how_a_step_is_taken_changes_training(key):
    assert changed(training=TrainingSection(**key)) == ["train"]


@pytest.mark.parametrize("key", [{"lr": 0.5}, {"local_steps": 9}, {"local_epochs": 2}, {"schedule": "cosine"}])
def test_what_a_task_says_itself_changes_nothing_here(key):
    assert changed(training=TrainingSection(**key)) == []


def test_a_sample_of_the_node_changes_what_reads_it():
    own = int(FEDERATION.shards.of(KEY.node)[0])
    assert changed(federation=with_features(own, 7.0)) == ["train", "evaluate"]


def test_a_held_out_sample_of_the_node_does_too():
    held = int(FEDERATION.local_tests.of(KEY.node)[0])
    assert "evaluate" in changed(federation=with_features(held, 7.0))


def test_a_sample_of_another_node_changes_nothing():
    foreign = int(FEDERATION.shards.of(2)[0])
    assert changed(federation=with_features(foreign, 7.0)) == []


def test_a_test_sample_changes_evaluation_alone():
    assert changed(federation=with_features(0, 7.0, "test")) == ["evaluate"]


def test_the_order_of_a_shard_changes_what_a_batch_draws():
    shards = FEDERATION.shards
    indices = shards.indices.copy()
    start, end = shards.offsets[KEY.node : KEY.node + 2]
    indices[start:end] = indices[start:end][::-1]
    federation = dataclasses.replace(FEDERATION, shards=Shards(shards.offsets, indices))
    assert changed(federation=federation) == ["train", "evaluate"]


def test_more_nodes_with_the_same_shards_change_nothing():
    shards = FEDERATION.shards
    offsets = np.append(shards.offsets, shards.offsets[-1])
    locals_ = FEDERATION.local_tests
    more = dataclasses.replace(
        FEDERATION,
        shards=Shards(offsets, shards.indices),
        local_tests=Shards(np.append(locals_.offsets, locals_.offsets[-1]), locals_.indices),
    )
    assert changed(federation=more) == []


def test_seed_and_counter_are_the_tasks_own():
    assert changed(key=Key(9, KEY.node, 77)) == []
    assert changed(key=Key(0, 2, 5)) == ["train", "evaluate"]


def custom(scale):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, 10)
            self.scale = scale

        def forward(self, x):
            return self.linear(x.flatten(1)) * self.scale

    return Model("custom", Block)


def test_an_attribute_of_a_layer_changes_training_and_evaluation():
    assert digests(model=custom(1.0)) == digests(model=custom(1.0))
    pairs = zip(digests(model=custom(1.0)), digests(model=custom(2.0)), strict=True)
    assert [a != b for a, b in pairs] == [True, True, False]


def test_the_files_of_all_layers_and_of_the_factory_count(monkeypatch, tmp_path):
    files = {}

    def moved(kind):
        path = tmp_path / f"{kind.__name__}.py"
        path.write_text(files.get(kind.__name__, "as it was"))
        return str(path)

    monkeypatch.setattr(module.inspect, "getsourcefile", moved)
    before = digests(model=custom(1.0))
    for name in ("Block", "Linear"):
        files.clear()
        files[name] = "another line"
        assert digests(model=custom(1.0))[0] != before[0], name


def test_a_model_drawn_anew_follows_from_seed_and_architecture():
    def of_fresh(model=MODEL, key=KEY):
        return Basis(FEDERATION, model, TRAINING, "loop").of_fresh(key)

    assert of_fresh() == of_fresh(key=KEY._replace(node=3, counter=9))
    others = {of_fresh(key=KEY._replace(seed=1)), of_fresh(model=build(ModelSection(hidden=(9,)), (1, 8, 8), 10))}
    assert len(others - {of_fresh()}) == 2
