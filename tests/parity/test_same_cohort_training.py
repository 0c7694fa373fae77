"""Whatever a cohort's round is made of, real processes and the simulation end with the same models."""

import pytest

from test_parity import arm

SECTIONS = {
    "nodes": 6,
    "seed": 11,
    "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5, "local_test_fraction": 0.1},
    "model": {"name": "softmax"},
    "training": {"lr": 0.1, "local_steps": 4},
}
PROTOCOL = {
    "use": "cpfl",
    "cohorts": 2,
    "stopping": {"rule": "budget", "most_rounds": 4},
    "checkpoint": "last",
    "election_timeout_s": 3.0,
}


@pytest.mark.parametrize(
    "options",
    [
        {"server": "adam", "correction": "scaffold"},
        {"weights": "nova", "proximal": 0.1},
        {"branching": 2, "correction": "scaffold"},
    ],
    ids=["adam and scaffold", "nova and prox", "branches"],
)
def test_both_worlds_end_with_the_same_models(starling, tmp_path, options):
    sections = {**SECTIONS, "protocol": {**PROTOCOL, **options}}
    real, virtual = [arm(starling, tmp_path / clock, clock, sections) for clock in ("real", "virtual")]
    assert real.models() == virtual.models()
    assert len(set(real.models().values())) == 1
    plain = arm(starling, tmp_path / "plain", "virtual", {**SECTIONS, "protocol": PROTOCOL})
    assert plain.models() != virtual.models()
