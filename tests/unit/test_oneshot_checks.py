"""One-shot algorithms get what they declare and what the experiment allows: anything else is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from node import ConfigError, Spec
from node.assumptions import Assumptions
from node.config import DataSection, PublicSection
from node.learn.data import federate
from node.learn.oneshot.algorithm import Algorithm, Measuring, OwnTraining
from node.learn.oneshot.averaging import Average
from oneshots import Run, checked

PUBLIC = {"public": {"name": "held-out", "samples": 60}}
LABELLED = {"public": {"name": "held-out", "samples": 60, "labelled": True}}
HELD = {"data": {"local_test_fraction": 0.2}}


class Labelled(Average):
    """Adds what the labels of public samples sum up to."""

    declares = Assumptions(public="labelled", shared_start=True)

    def finish(self, state, assets):
        return super().finish(state, assets) + 0 * assets.labels.sum()


class Peeping(Average):
    """Reads what it has not declared."""

    declares = Assumptions()

    class Config(Average.Config):
        asset: str

    def finish(self, state, assets):
        getattr(assets, self.config.asset)
        return super().finish(state, assets)


class Curious(Average):
    """Reads of an upload what it has not declared."""

    class Config(Average.Config):
        asset: str

    def weight(self, upload):
        getattr(upload, self.config.asset)
        return 1.0


class Scoring(Measuring):
    """Clients send the sum of something that they have."""

    declares = Assumptions(reveals="statistics")

    class Config(Measuring.Config):
        asset: str = "features"

    def parts(self, task, counts):
        return {"sum": Spec((1,))}

    def part(self, name, client, trained):
        return getattr(client, self.config.asset).float().sum().reshape(1)

    def aggregate(self, uploads, assets):
        return torch.stack([upload.model for upload in uploads]).mean(0) + 0 * uploads[0].part("sum")


class Speaking(Scoring):
    declares = Assumptions(reveals="predictions", public="unlabelled")
    sends_model = False

    def aggregate(self, uploads, assets):
        return torch.zeros(assets.task.model.dimension)


class Telling(Scoring):
    declares = Assumptions(reveals="histogram")


class Shouting(Average):
    declares = Assumptions(reveals="predictions")


class Training(OwnTraining):
    declares = Assumptions()

    def fitted(self, task):
        return task.model.spec

    def fit_samples(self, task, samples):
        return samples

    def fit(self, client):
        return torch.zeros(client.task.model.dimension)

    def aggregate(self, uploads, assets):
        return uploads[0].model


class DeclaredTraining(Training):
    declares = Assumptions(own_training=True)


class Long(Average):
    """Says more of samples than there are classes."""

    def predict(self, state, features, assets):
        said = super().predict(state, features, assets)
        return torch.cat([said, said], 1)


class Mute(Average):
    """A model of no numbers."""

    def finish(self, state, assets):
        return torch.full_like(state[:-1], torch.nan)


class Silent(Algorithm):
    """Does not say what it assumes."""

    def aggregate(self, uploads, assets):
        return uploads[0].model


class Unfinished(Algorithm):
    declares = Assumptions()


def own(kind, **options):
    return {"protocol": {"algorithm": f"{__name__}:{kind.__name__}", "options": options}}


def refused(**tables):
    with pytest.raises(ConfigError) as caught:
        checked(**tables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What the experiment forbids


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            {"protocol": {"algorithm": "ensemble-label-probabilities", "reveal": "model"}},
            "protocol.algorithm: 'ensemble-label-probabilities' needs clients to reveal 'histogram', and"
            " protocol.reveal = 'model' forbids it; set it to 'histogram', or choose another algorithm",
        ),
        ({"protocol": {"algorithm": "weighted-average", "reveal": "model"}}, "needs clients to reveal 'scalars'"),
        ({"protocol": {"algorithm": "ensemble-selected"}}, "set data.local_test_fraction above 0"),
        (own(Speaking), "needs public samples, and there are none; set public.name"),
        (own(Labelled), "needs public samples"),
        (own(Labelled) | PUBLIC, "set public.labelled = true"),
    ],
)
def test_more_than_is_allowed_is_refused_before_anything_runs(tables, says):
    assert says in refused(**tables)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"protocol": {"algorithm": "pfnm"}, "model": {"hidden": [12, 8]}}, "allowed: 'mlp' with one hidden layer"),
        ({"protocol": {"algorithm": "weight-matching"}, "model": {"name": "resnet8"}}, "units of 'resnet8' cannot be"),
        ({"protocol": {"algorithm": "ot-fusion"}, "model": {"name": "resnet8"}}, "for it has a _Block; allowed: "),
    ],
)
def test_networks_that_cannot_be_matched_are_refused_before_anything_runs(tables, says):
    found = refused(**tables)
    assert found.startswith("model.name: ")
    assert says in found


@pytest.mark.parametrize("algorithm", ["pfnm", "weight-matching", "ot-fusion"])
def test_networks_that_can_be_are_not(algorithm):
    assert checked(protocol={"algorithm": algorithm}).model.name == "mlp"


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ({"algorithm": "avrage"}, "'avrage' is unknown; did you mean 'average'?"),
        ({"algorithm": "nowhere:Thing"}, "protocol.algorithm: 'nowhere' cannot be imported"),
        ({"algorithm": "node.op:Spec"}, "is no subclass of Algorithm"),
        ({"algorithm": "task-arithmetic", "options": {"scale": -1}}, "protocol.options.scale: "),
        ({"algorithm": "average", "options": {"scale": 1}}, "(options of average: none)"),
        ({"reveal": "everything"}, "protocol.reveal"),
        ({"upload": "int4"}, "protocol.upload"),
    ],
)
def test_wrong_names_and_options_are_refused(protocol, says):
    assert says in refused(protocol=protocol)


# What an algorithm has not declared


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Telling, "uploads parts, which reveals='histogram' does not cover; declare reveals='statistics' or more"),
        (Shouting, "uploads models, which it has not declared; declare reveals='model', or sends_model = False"),
        (Training, "declare own_training=True"),
        (Unfinished, "lacks aggregate"),
        (Silent, "does not say what it assumes; declares = Assumptions(...)"),
    ],
)
def test_an_upload_that_is_not_declared_is_refused(kind, says):
    assert says in refused(**own(kind))


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (own(Peeping, asset="start"), "the common initial model, which it has not declared; declare shared_start=True"),
        (own(Peeping, asset="public") | PUBLIC, "public samples, which it has not declared"),
        (own(Peeping, asset="labels") | LABELLED, "labels of public samples, which it has not declared"),
        (own(Curious, asset="counts"), "a client's label histogram, which it has not declared"),
        (own(Curious, asset="samples"), "a client's number of samples, which it has not declared"),
        (own(Curious, asset="score"), "a client's score, which it has not declared"),
        (own(Scoring, asset="held_features") | HELD, "samples that clients hold out, which it has not declared"),
        (own(Scoring, asset="held_labels") | HELD, "samples that clients hold out, which it has not declared"),
        (own(Scoring, asset="start"), "the common initial model, which it has not declared"),
        (own(Scoring, asset="public") | PUBLIC, "public samples, which it has not declared"),
        (own(Speaking, asset="features") | PUBLIC, "a client's own samples, which it has not declared"),
        (own(Speaking, asset="labels") | PUBLIC, "a client's own samples, which it has not declared"),
    ],
)
def test_what_is_not_declared_is_not_handed_over(tables, says):
    run = Run(nodes=3, **tables)
    assert run.summary["status"] == "failed"
    assert says in run.summary["error"]


@pytest.mark.parametrize(
    "tables",
    [own(Labelled) | LABELLED, own(Scoring), own(Speaking, asset="public") | PUBLIC, own(DeclaredTraining)],
    ids=["labels", "statistics", "predictions", "training"],
)
def test_what_is_declared_is(tables):
    run = Run(nodes=3, **tables)
    assert (run.summary["status"], run.summary["error"]) == ("finished", None)


def test_answers_of_another_shape_are_told():
    run = Run(**own(Long))
    assert run.summary["status"] == "failed"
    assert f"{__name__}:Long: predict gives [360, 20]; asked for: [360, 10]" in run.summary["error"]


def test_a_predictor_that_says_no_numbers_is_never_right():
    run = Run(**own(Mute))
    assert run.metric("accuracy") == run.metric("macro_f1") == run.metric("recall_0") == 0


def test_the_summary_says_what_was_assumed():
    run = Run(nodes=3, protocol={"algorithm": "weighted-average"})
    assert run.own["cell"] == "R1 D0 W2 H0 M1 F1 S0"
    assert run.own["assumes"]["reveals"] == "scalars"
    assert run.own["streams"] is True


# Labels of public samples


def test_labels_are_those_of_the_samples_that_were_held_out():
    section = PublicSection(name="held-out", samples=50, labelled=True)
    public = federate(DataSection(), 4, 5, section).public
    hidden = federate(DataSection(), 4, 5, section.model_copy(update={"labelled": False})).public
    assert hidden.labels is None
    assert torch.equal(public.features, hidden.features)
    known = {
        row.numpy().tobytes(): int(label)
        for samples in [federate(DataSection(), 4, 5).train]
        for row, label in zip(samples.features, samples.labels, strict=True)
    }
    told = [known[row.numpy().tobytes()] for row in public.features]
    assert told == public.labels.tolist()
    assert len(set(told)) > 5


def test_labels_of_another_data_set_must_be_the_experiment_s(tmp_path):
    features = np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32)
    paths = []
    for i, classes in enumerate((10, 11)):
        paths.append(tmp_path / f"{i}.npz")
        np.savez(paths[-1], features=features, label=np.arange(20) % classes)
    public = federate(DataSection(), 4, 5, PublicSection(name=str(paths[0]), labelled=True)).public
    assert sorted(public.labels.tolist()) == sorted(i % 10 for i in range(20))
    with pytest.raises(ConfigError, match="label 10 is not among the training samples'"):
        federate(DataSection(), 4, 5, PublicSection(name=str(paths[1]), labelled=True))
    with pytest.raises(ConfigError, match=r"public.labelled: public.label = '' says that there are no labels"):
        federate(DataSection(), 4, 5, PublicSection(name=str(paths[0]), labelled=True, label=""))


def test_labels_that_nobody_uses_are_refused():
    assert "public.labelled: there are no public samples" in refused(public={"labelled": True})
    local = {"protocol": {"use": "local", "rounds": 1}, **LABELLED}
    assert "public.labelled: protocol 'local' has no use for labels" in refused(**local)
