"""Privacy loss distributions: dp-accounting's numbers where it is installed, and one clear line where it is not."""

import importlib
import math

import pytest

from node.errors import ConfigError
from node.privacy import gaussian, pld
from node.privacy.pld import Steps

DELTA = 1e-5


@pytest.fixture
def library():
    return pytest.importorskip("dp_accounting.pld.privacy_loss_distribution", reason="the extra [privacy]")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("sigma", "q", "steps", "epsilon"),
    [
        (1, 0.01, 1000, 1.828244),
        (0.8, 0.02, 500, 4.668013),
        (2, 0.1, 200, 3.359661),
        (1.5, 1, 10, 10.669523),
        (0.5, 0.001, 10000, 5.226831),
        (4, 1, 100, 13.206712),
        (1, 1, 1, 4.377178),
    ],
)
def test_reference_values(sigma, q, steps, epsilon):
    assert pld.epsilon_of([Steps(sigma, q, steps)], DELTA) == pytest.approx(epsilon, abs=5e-3)


@pytest.mark.usefixtures("library")
def test_replacing_a_record_costs_more():
    found = pld.epsilon_of([Steps(1, 0.01, 1000)], DELTA, "replace_one")
    assert found == pytest.approx(2.843446, abs=5e-3)


@pytest.mark.usefixtures("library")
def test_coarser_bins_never_flatter():
    fine, coarse = (pld.epsilon_of([Steps(1, 0.01, 1000)], DELTA, interval=width) for width in (1e-4, 1e-3))
    assert fine <= coarse == pytest.approx(1.828934, abs=5e-3)


@pytest.mark.usefixtures("library")
def test_kinds_of_steps_compose():
    split = pld.epsilon_of([Steps(1, 0.01, 400), Steps(1, 0.01, 600)], DELTA)
    assert split == pytest.approx(pld.epsilon_of([Steps(1, 0.01, 1000)], DELTA), abs=5e-3)
    exact = gaussian.epsilon_of(gaussian.compose([1 / 2, 1 / 3]), DELTA)
    assert pld.epsilon_of([Steps(2, 1, 1), Steps(3, 1, 1)], DELTA) == pytest.approx(exact, abs=5e-3)


@pytest.mark.parametrize("steps", [[], [Steps(1, 0.5, 0)], [Steps(1, 0, 10)], [Steps(0, 0, 10)]])
def test_nothing_done_costs_nothing(steps):
    assert pld.epsilon_of(steps, DELTA) == 0


def test_a_step_without_noise_costs_everything():
    assert pld.epsilon_of([Steps(1, 0.5, 3), Steps(0, 0.5, 1)], DELTA) == math.inf


def test_a_delta_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="delta: 0"):
        pld.epsilon_of([], 0)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    def missing(name, *rest):
        if name.split(".")[0] == "dp_accounting":
            raise ModuleNotFoundError(name)
        return importlib.import_module(name, *rest)

    monkeypatch.setattr(pld, "import_module", missing)
    with pytest.raises(ConfigError, match=r"starling-node\[privacy\]") as refusal:
        pld.epsilon_of([Steps(1.23, 0.5, 3)], DELTA)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(("sigma", "q", "steps"), [(0.01, 0.01, 1000), (0.01, 1, 1), (0.03, 1, 1), (0.2, 1, 10**6)])
def test_so_little_noise_that_it_would_not_end_is_refused_at_once(sigma, q, steps):
    with pytest.raises(ConfigError, match=r"^method: pld would need .* bins .*; allowed: up to 2e\+07; take rdp"):
        pld.epsilon_of([Steps(sigma, q, steps)], 1e-5)
