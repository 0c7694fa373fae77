"""Feature mixtures: what is told in how many bytes, what is drawn from it, and a head that learns from that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from node import ConfigError
from node.learn.oneshot.algorithm import Upload
from node.learn.oneshot.given import shuffled
from node.learn.oneshot.mixtures import FedPFT, _Layout, linear_head
from node.learn.workload import prepare_torch
from oneshot_clients import untrained
from oneshots import NODES, Run, checked, mod

COVARIANCES = ("spherical", "diagonal", "full")
UNITS = 12


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    prepare_torch()


def built(**options):
    return FedPFT(FedPFT.Config(**{"units": UNITS, "steps": 50, **options}))


def only(world, rows):
    """The first client alone, with some of its samples."""
    features, labels = world.data[0]
    return world._replace(data=[(features[rows], labels[rows])], models=world.models[:1])


def part_bytes(upload, own, world, counts):
    return sum(upload.part(name).numel() * 2 for name in own.parts(world.task, counts))


# What is told


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("components", [1, 3])
def test_uploads_have_the_bytes_of_the_formula(covariance, components):
    """K d + K numbers a class, and K (spherical), K d (diagonal) or K d^2 (full) of covariance; 2 bytes each."""
    own = built(components=components, covariance=covariance)
    task = untrained("iid", 0).world.task
    spread = {"spherical": 1, "diagonal": UNITS, "full": UNITS**2}[covariance]
    one = 2 * components * (UNITS + 1 + spread)
    for classes in range(11):
        counts = [20] * classes + [0] * (10 - classes)
        specs = own.parts(task, counts).values()
        assert {spec.dtype for spec in specs} == {"float16"}
        assert sum(spec.size_bytes for spec in specs) == classes * one


def test_reference_size():
    """13,100 bytes: the mean of the four partitions, whose clients have 10, 8.7, 4.8 and 2.6 classes."""
    own, task = FedPFT(), untrained("iid", 0).world.task
    one = sum(spec.size_bytes for spec in own.parts(task, [9, *[0] * 9]).values())
    assert one * (10 + 8.7 + 4.8 + 2.6) / 4 == pytest.approx(13_100, rel=0.01)


@given(st.lists(st.integers(0, 12), min_size=10, max_size=10), st.sampled_from(COVARIANCES), st.integers(1, 10))
def test_no_class_is_dropped_and_none_is_told_that_is_not_there(counts, covariance, components):
    own, task = built(components=components, covariance=covariance), untrained("iid", 0).world.task
    sizes = {name: spec.shape[0] for name, spec in own.parts(task, counts).items()}
    for label, count in enumerate(counts):
        if not count:
            assert sizes[f"class-{label}"] == 0
        elif count <= components:
            assert sizes[f"class-{label}"] == UNITS
        else:
            assert sizes[f"class-{label}"] > UNITS
    lacks = any(0 < count <= components for count in counts)
    assert sizes["pooled"] == (0 if not lacks else 1 if covariance == "spherical" else UNITS)
    assert [*sizes] == [*own.parts(task, [0] * 10)]  # whatever is claimed, tensors have the same names


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_is_told_are_the_client_s_own_figures(covariance):
    world = only(untrained("iid", 0).world, slice(None))
    own = built(covariance=covariance)
    (upload,) = world.uploads(own)
    features, labels = world.data[0]
    mine = own.features(features, world.assets(own))[labels == 4].numpy()
    share, mean, spread = np.split(upload.part("class-4").double().numpy(), [1, 1 + UNITS])
    wanted = {"spherical": mine.var(0).mean(), "diagonal": mine.var(0), "full": np.cov(mine.T, bias=True).ravel()}
    assert share == 1
    assert np.allclose(mean, mine.mean(0), atol=2e-3)
    assert np.allclose(spread, wanted[covariance], atol=2e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_classes_of_few_samples_send_their_mean_and_a_pooled_variance(covariance):
    rows = torch.cat([torch.arange(30), torch.tensor([40])])
    world = only(untrained("iid", 0).world, rows)
    own = built(components=5, covariance=covariance)
    (upload,) = world.uploads(own)
    features, labels = world.data[0]
    mine = own.features(features, world.assets(own)).numpy()
    few = [label for label, count in enumerate(torch.bincount(labels, minlength=10).tolist()) if 0 < count <= 5]
    assert few
    for label in few:
        assert np.allclose(upload.part(f"class-{label}"), mine[labels.numpy() == label].mean(0), atol=2e-3)
    means = np.stack([mine[labels.numpy() == label].mean(0) for label in labels.tolist()])
    pooled = ((mine - means) ** 2).mean(0)
    assert np.allclose(upload.part("pooled"), pooled.mean() if covariance == "spherical" else pooled, atol=2e-3)


def test_equal_samples_make_no_fuss():
    world = only(untrained("iid", 0).world, torch.zeros(8, dtype=torch.int64))
    own = built(components=3)
    assert torch.isfinite(world.aggregated(own)).all()


# What is drawn


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_is_drawn_has_the_moments_of_what_was_told(covariance):
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0.0, 0.0], [9.0, -9.0, 5.0]])
    features = np.concatenate(
        [rng.normal(size=(300, 3)) @ np.diag([1, 0.5, 2]) + centres[0], centres[1] + rng.normal(size=(100, 3))]
    )
    layout = _Layout(2, 3, covariance)
    told = layout.estimated(features, 0)
    assert (told.dtype, len(told)) == (torch.float16, layout.size)
    drawn = layout.drawn(told.double().numpy(), 20_000, rng)
    near = np.linalg.norm(drawn - centres[1], axis=1) < np.linalg.norm(drawn - centres[0], axis=1)
    assert near.mean() == pytest.approx(0.25, abs=0.02)
    assert np.allclose(drawn.mean(0), features.mean(0), atol=0.2)
    if covariance != "spherical":
        assert np.allclose(drawn[~near].std(0), features[:300].std(0), rtol=0.1)


def test_full_covariances_keep_how_features_vary_together():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(500, 1)) * np.array([[1.0, -1.0, 0.5]]) + 0.1 * rng.normal(size=(500, 3))
    full, diagonal = (_Layout(1, 3, kind) for kind in ("full", "diagonal"))
    drawn = [each.drawn(each.estimated(features, 0).double().numpy(), 5000, rng) for each in (full, diagonal)]
    assert np.corrcoef(drawn[0].T)[0, 1] == pytest.approx(np.corrcoef(features.T)[0, 1], abs=0.02)
    assert abs(np.corrcoef(drawn[1].T)[0, 1]) < 0.1


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(COVARIANCES),
    st.integers(1, 3),
    st.lists(st.floats(-64_992, 64_992, width=16), min_size=1, max_size=30),
)
def test_nonsense_stays_finite(covariance, components, numbers):
    """Shares below 0, variances below 0, covariances that are none."""
    layout = _Layout(components, 4, covariance)
    told = np.resize(np.array(numbers), layout.size)
    assert np.isfinite(layout.drawn(told, 5, np.random.default_rng(0))).all()


def test_a_claim_that_was_cut_is_how_much_a_client_counts():
    world = untrained("dirichlet-0.5", 0).world
    own = built(components=4)
    uploads = world.uploads(own)
    claimed = uploads[2].counts.int().tolist()
    parts = {name: uploads[2].part(name) for name in own.parts(world.task, claimed)}
    cut = [count // 5 for count in claimed]
    uploads[2] = Upload("it", own.declares, 3, None, parts, sum(cut), cut, 0.0)
    drawn = dict(own._drawn(uploads[2], 1.0, world.assets(own)))
    assert {label: len(features) for label, features in drawn.items()} == {
        label: cut[label] for label, count in enumerate(claimed) if count
    }
    assert torch.isfinite(own.aggregate(uploads, world.assets(own))).all()


# The head


def test_the_head_is_logistic_regression():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    features = rng.normal(size=(300, 4)) + 0.7 * np.eye(4)[labels]
    members = torch.from_numpy(np.eye(3)[labels])
    head = linear_head(torch.from_numpy(features), members, shuffled(300, 300, 800, rng), 3e-2).numpy()
    plain = LogisticRegression(C=np.inf, max_iter=1000).fit(features, labels)
    centred = head - head.mean(0)  # softmax does not see what all classes have in common
    wanted = np.concatenate([plain.coef_, plain.intercept_[:, None]], 1)
    assert np.allclose(centred, wanted - wanted.mean(0), atol=0.05)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 50))
def test_batches_go_through_all_samples_before_any_comes_again(samples, batch_size, steps):
    rows = [*shuffled(samples, batch_size, steps, np.random.default_rng(1))]
    assert len(rows) == steps
    per_pass = -(-samples // batch_size)
    for start in range(0, steps - per_pass + 1, per_pass):
        assert sorted(torch.cat(rows[start : start + per_pass]).tolist()) == [*range(samples)]


@pytest.mark.parametrize(("partition", "expected"), [("dirichlet-0.1", 91.8), ("shards", 90.5)])
def test_reference_accuracy(partition, expected):
    """91.8+-0.8 and 90.5+-1.3; a band is three points to each side, and of a mean over seeds."""
    assert abs(np.mean([untrained(partition, seed).accuracy(FedPFT()) for seed in (1, 2)]) - expected) < 3


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_more_gaussians_and_every_covariance_work(covariance):
    own = FedPFT(FedPFT.Config(units=40, components=3, covariance=covariance, steps=600))
    assert untrained("dirichlet-0.1", 0).accuracy(own) > 75


def test_one_sample_of_each_class_at_each_client_is_not_lost():
    """Every class has but one sample at every client: nothing but means, and almost no variance, is there."""
    found = untrained("iid", 0)
    rows = [torch.tensor([int((labels == c).nonzero()[0]) for c in range(10)]) for _, labels in found.world.data]
    data = [(features[own], labels[own]) for own, (features, labels) in zip(rows, found.world.data, strict=True)]
    assert found.world._replace(data=data).accuracy(built(units=300, steps=800), found.features, found.labels) > 75


def test_the_result_follows_from_the_seed_and_not_from_who_else_is_there():
    world, own = untrained("dirichlet-0.5", 0).world, built()
    assert torch.equal(world.aggregated(own), world.aggregated(own))
    uploads = world.uploads(own)
    assets = [world.assets(own).beside(uploads[3].client) for _ in range(2)]
    one, other = (dict(own._drawn(uploads[3], 1.0, each)) for each in assets)
    assert all(np.array_equal(one[label], other[label]) for label in one)


# In a run


def test_a_run_of_clients_that_lack_classes():
    run = Run(protocol={"algorithm": "fedpft", "options": {"units": 20, "steps": 200}}, data={"partition": "shards"})
    assert run.summary["status"] == "finished"
    assert run.own["cell"] == "R3 D0 W3 H0 M3 F1 S0"
    assert run.metric("accuracy") > 0.3
    assert run.own["uploaded_bytes"]["parts"]["most"] < 2 * 5 * 41
    assert run.metric("uploads") == NODES - 1


def test_a_claim_of_a_hundred_times_as_much_does_not_stop_it():
    options = {"algorithm": "fedpft", "options": {"units": 20, "steps": 50}, "most_samples": 60}
    run = Run(protocol=options, mods=[mod("Changing", 1, what="claims", factor=100)])
    assert (run.summary["status"], run.missing) == ("finished", {})


@pytest.mark.parametrize("factor", [10**9, 2**55])
def test_no_more_is_drawn_than_the_head_learns_from_whatever_is_claimed(factor):
    options = {"algorithm": "fedpft", "options": {"units": 20, "steps": 50}}
    run = Run(protocol=options, mods=[mod("Changing", 1, what="claims", factor=factor)])
    assert (run.summary["status"], run.missing) == ("finished", {})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"components": 0}, "protocol.options.components"),
        ({"covariance": "tied"}, "protocol.options.covariance"),
        ({"epochs": 3}, "options of fedpft: units, components, covariance"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        checked(protocol={"algorithm": "fedpft", "options": options})
