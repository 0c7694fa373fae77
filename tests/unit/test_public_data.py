"""Public samples: where they come from, who does not get them, and what does not fit."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from node import ConfigError, Context, Protocol
from node.config import DataSection, ExperimentConfig, PublicSection
from node.experiment.loading import load as load_experiment
from node.experiment.loading import validated
from node.experiment.setup import prepare
from node.experiment.unifying import statement
from node.learn.data import federate, load
from node.learn.public import PublicData


class Unifying(Protocol):
    """Asks for a unifier, and does nothing."""

    class Config(Protocol.Config):
        unify: str = "kd-hard"
        """How models become one."""

    @classmethod
    def unifier(cls, config):
        return config.unify

    async def run(self, ctx: Context):
        return ctx.initial_model()


def experiment(**tables):
    use = {"use": f"{__name__}:Unifying", **tables.pop("protocol", {})}
    return validated({"nodes": 4, "protocol": use, "topology": {"kind": "full"}, **tables}, "here")


def rows(features):
    return {row.numpy().tobytes() for row in features}


@pytest.fixture
def archive(tmp_path):
    """Writes an .npz file and returns its name."""

    def write(name="public.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write


# A share of the training samples


def test_what_is_held_out_is_nobody_s_and_no_test_sample():
    whole, test = load(DataSection(), 5)
    federation = federate(DataSection(), 7, 5, PublicSection(name="held-out", fraction=0.2))
    public, train = federation.public, federation.train
    assert len(public.features) == round(0.2 * len(whole.labels))
    assert len(public.features) + len(train.labels) == len(whole.labels)
    assert torch.equal(federation.test.features, test.features)
    assert not rows(public.features) & rows(train.features)
    assert rows(public.features) | rows(train.features) == rows(whole.features)
    assert sorted(federation.shards.indices.tolist()) == list(range(len(train.labels)))


def test_public_samples_have_no_labels():
    public = federate(DataSection(), 2, 5, PublicSection(name="held-out")).public
    assert not any(isinstance(value, torch.Tensor) and value.dtype == torch.int64 for value in fields_of(public))
    assert [len(value) for value in fields_of(public) if isinstance(value, torch.Tensor)] == [144]


def fields_of(public: PublicData):
    return [getattr(public, name) for name in public.__slots__]


def test_without_a_name_nothing_changes():
    plain, named = federate(DataSection(), 3, 5), federate(DataSection(), 3, 5, PublicSection())
    assert plain.public is named.public is None
    assert np.array_equal(plain.shards.indices, named.shards.indices)


def test_the_seed_decides_which_and_samples_how_many():
    def held(seed, **more):
        return federate(DataSection(), 2, seed, PublicSection(name="held-out", **more)).public

    assert torch.equal(held(5).features, held(5).features)
    assert rows(held(5).features) != rows(held(6).features)
    assert [len(held(5, samples=count).features) for count in (1, 30)] == [1, 30]
    assert [held(5, samples=30, check_fraction=share).check_samples for share in (0, 0.1, 0.5)] == [0, 3, 15]


def test_groups_are_made_of_what_is_left():
    section = DataSection(groups=(2, 2))
    federation = federate(section, 4, 5, PublicSection(name="held-out", fraction=0.5))
    assert len(federation.train.groups.of_sample) == len(federation.train.labels) == 719


# Another data set


def test_a_file_of_the_same_shape_may_have_other_classes(archive):
    images = np.random.default_rng(0).random((60, 1, 8, 8)).astype(np.float32)
    name = archive(x=images, label=np.arange(60) % 20)
    federation = federate(DataSection(), 2, 5, PublicSection(name=name))
    assert rows(federation.public.features) == rows(torch.from_numpy(images))
    assert federation.public.foreign_samples == 30
    assert len(federation.train.labels) == 1437
    assert statement(federation.public) == {
        "source": name,
        "samples": 60,
        "check_samples": 6,
        "foreign_samples": 30,
    }


def test_a_file_need_have_no_labels(archive):
    name = archive(x=np.zeros((10, 1, 8, 8), np.float32))
    public = federate(DataSection(), 2, 5, PublicSection(name=name, label="")).public
    assert (len(public.features), public.foreign_samples) == (10, None)
    with pytest.raises(ConfigError, match=r"has no 'label' \(public.label\); it has: x$"):
        federate(DataSection(), 2, 5, PublicSection(name=name))


def test_a_table_need_have_no_labels(tmp_path):
    path = tmp_path / "public.csv"
    path.write_text(",".join(f"f{i}" for i in range(30)) + "\n" + ",".join(["2.5"] * 30) + "\n", encoding="utf-8")
    section = PublicSection(name=str(path), label="")
    assert federate(DataSection(name="breast_cancer"), 2, 5, section).public.features.shape == (1, 30)


def test_columns_are_scaled_as_the_training_samples_are(tmp_path):
    from sklearn.datasets import load_breast_cancer

    features, _ = load_breast_cancer(return_X_y=True)
    np.savez(tmp_path / "p.npz", x=features, label=np.zeros(len(features), int))
    federation = federate(
        DataSection(name="breast_cancer"), 2, 5, PublicSection(name=str(tmp_path / "p.npz"), check_fraction=0)
    )
    assert rows(federation.train.features) < rows(federation.public.features)
    assert rows(federation.test.features) < rows(federation.public.features)


def test_generated_samples_have_the_experiment_s_shape():
    data = DataSection(name="breast_cancer")
    public = federate(data, 2, 5, PublicSection(name="synthetic", samples=50)).public
    assert public.features.shape == (50, 30)
    assert len(federate(data, 2, 5, PublicSection(name="synthetic")).public.features) == 455


@pytest.mark.parametrize(
    ("public", "says"),
    [
        ({"name": "breast_cancer"}, r"public.name: samples of 'breast_cancer' have shape \[30\]; allowed here: \[1, 8"),
        ({"name": "digits"}, "public.name: 'digits' is what nodes train on and are tested with; allowed: another data"),
        ({"name": "gone.npz"}, "public.name: there is no file 'gone.npz'"),
        ({"name": "held-out", "samples": 1438}, "public.samples: 1438 of the 1437 samples of 'held-out'; allowed: up"),
        (
            {"name": "held-out", "samples": 1, "check_fraction": 0.9},
            "public.check_fraction: of 1 public samples, none is left for students to learn from",
        ),
        ({"name": "held-out", "samples": 1436}, "nodes: 4 nodes for 1 training samples"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_before_any_training(public, says):
    with pytest.raises(ConfigError, match=says) as caught:
        prepare(experiment(public=public))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"fraction": 0}, {"fraction": 1}, {"samples": -1}, {"check_fraction": 1}, {"x": 1}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        PublicSection(name="held-out", **wrong)


# An experiment's unifier


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({}, "protocol.unify: 'kd-hard' teaches a student on public data, and there is none; set public.name"),
        ({"protocol": {"unify": "mean"}}, "protocol.unify: no unifier is called 'mean'; .*known: average, fisher"),
        (
            {"protocol": {"unify": "average"}, "student": {"name": "softmax"}},
            "protocol.unify: 'average' averages parameters, and the student has another architecture",
        ),
        (
            {"public": {"name": "held-out"}, "student": {"name": "resnet18"}},
            "student.name: no model 'resnet18'; did you mean 'resnet8'",
        ),
        (
            {"data": {"name": "breast_cancer"}, "public": {"name": "held-out"}, "student": {"name": "lenet"}},
            "student.name: 'lenet' needs images",
        ),
    ],
)
def test_a_unifier_that_lacks_something_ends_the_run_before_it_begins(tables, says):
    with pytest.raises(ConfigError, match=says):
        prepare(experiment(**tables))


@pytest.mark.parametrize(
    ("student", "is_other"),
    [
        ({}, False),
        ({"name": "mlp"}, False),
        ({"name": "mlp", "hidden": [8]}, True),
        ({"name": "softmax"}, True),
        ({"hidden": [8]}, False),
    ],
)
def test_a_student_is_another_only_where_it_differs(student, is_other):
    setup = prepare(experiment(public={"name": "held-out"}, student=student))
    assert setup.workload.unify.has_other_student == is_other
    assert statement(setup.workload.unify.public)["source"] == "held-out"


def test_a_protocol_that_unifies_nothing_needs_nothing():
    assert prepare(experiment(protocol={"unify": ""})).workload.unify.public_samples == 0
    assert statement(None) == {}


def test_a_server_s_absence_from_the_data_leaves_what_is_public():
    class Served(Unifying):
        @classmethod
        def roles(cls, config, nodes):
            return {0: "server"}

    globals()["Served"] = Served
    config = experiment(public={"name": "held-out"}, protocol={"use": f"{__name__}:Served"})
    assert prepare(config).workload.unify.public_samples == 144


def test_a_path_is_relative_to_the_experiment_s_file(tmp_path, archive):
    archive(x=np.zeros((10, 1, 8, 8), np.float32))
    file = tmp_path / "e.toml"
    file.write_text('[public]\nname = "public.npz"\nlabel = ""\n', encoding="utf-8")
    config = load_experiment(str(file))
    assert config.public.name == str(tmp_path / "public.npz")
    assert ExperimentConfig.model_validate(json.loads(config.model_dump_json())) == config
    file.write_text('[public]\nname = "held-out"\n', encoding="utf-8")
    assert load_experiment(str(file)).public.name == "held-out"
