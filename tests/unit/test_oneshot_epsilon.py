"""Uploads under a stated epsilon: the least noise for it, what is then spent, and what it costs."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from node.experiment.oneshot_cell import solve
from node.experiment.oneshot_grid import Cell, Entrant, Setting
from node.experiment.oneshot_presets import entrants, preset
from node.experiment.oneshot_private import calibrated
from node.experiment.setup import prepare

QUICK = {"training": {"local_epochs": 3}}
PROTECTED = ("average", "weighted-average", "ensemble-probabilities", "ties", "feddf", "dense", "predictions")
UNPROTECTED = ("regmean", "fisher", "ridge", "centroids", "fedov", "fedcvae", "ensemble-label-probabilities")


def cell(epsilon, partition="iid", name="average"):
    return Cell(Entrant(name, name, sets=QUICK), Setting("digits", partition, 4, epsilon=epsilon))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_without_a_budget_nothing_changes():
    config = cell(0.0).config()
    assert calibrated(config) is config
    assert config.privacy.mechanism == "none"


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.5)"])
def test_the_budget_is_spent_and_not_exceeded(folder, partition):
    figures = solve(cell(4.0, partition), folder)["figures"]
    assert 3.999 < figures["epsilon"] <= 4.0
    assert figures["epsilon_mean"] <= figures["epsilon"]
    assert (figures["epsilon"] - figures["epsilon_mean"] > 0.1) == (partition != "iid")  # who has fewest spends most


def test_a_smaller_budget_takes_more_noise():
    sigmas = [calibrated(cell(epsilon).config()).privacy.noise_multiplier for epsilon in (16.0, 4.0, 1.0)]
    assert sigmas == sorted(sigmas)
    assert sigmas[0] < sigmas[1] / 1.5


def test_less_noise_would_exceed_it():
    config = calibrated(cell(2.0).config())
    less = config.privacy.model_copy(update={"noise_multiplier": 0.98 * config.privacy.noise_multiplier})
    prepare(config)
    with pytest.raises(ConfigError, match="first training"):
        prepare(config.model_copy(update={"privacy": less}))


def test_what_no_noise_reaches_is_refused():
    with pytest.raises(ConfigError, match="epsilon"):
        calibrated(cell(1e-9).config())


def test_protection_costs_accuracy(folder):
    plain, protected = (solve(cell(epsilon), folder)["figures"] for epsilon in (0.0, 1.0))
    assert protected["accuracy"] < plain["accuracy"] - 0.05
    assert "epsilon" not in plain
    assert protected["up_bytes"] == plain["up_bytes"]


def test_blocks_say_what_is_protected():
    assert Setting("digits", "iid", epsilon=8.0).block == "digits iid N=10, epsilon 8"
    assert not Setting("digits", "iid", epsilon=8.0).is_plain
    assert Setting("digits", "iid").is_plain


@pytest.mark.parametrize("name", ["small", "full"])
def test_presets_protect_only_those_whose_uploads_noise_covers(name):
    cells = [cell for cell in preset(name).cells(entrants()) if cell.setting.epsilon]
    there = {cell.entrant.algorithm for cell in cells}
    assert there >= set(PROTECTED)
    assert not there & {"", *UNPROTECTED}
    assert len({cell.setting.epsilon for cell in cells}) >= 2
    assert not {cell.setting for cell in cells} & set(preset(name).main)
