"""Sums under masks in cohorts: real processes and the simulation end with the same models, whatever the masks are."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from test_parity import arm

SECTIONS = {
    "nodes": 8,
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


def ended(starling, folder, clock, secure=True, noise="seeded"):
    sections = {**SECTIONS, "protocol": {**PROTOCOL, "secure": secure}, "privacy": {"noise": noise}}
    return arm(starling, folder, clock, sections)


def values(command):
    file = sorted((command.folder / "run" / "models").glob("*.safetensors"))[0]
    return np.concatenate([tensor.ravel() for _, tensor in sorted(load_file(file).items())])


@pytest.mark.parametrize("noise", ["seeded", "secret"])
def test_both_worlds_end_with_the_same_models(starling, tmp_path, noise):
    """Nothing is left of masks, also of those that nobody can repeat."""
    real = ended(starling, tmp_path / "real", "real", noise=noise)
    virtual = ended(starling, tmp_path / "virtual", "virtual")
    assert real.models() == virtual.models()
    assert len(set(real.models().values())) == 1


def test_the_models_are_those_without_masks_to_a_few_steps(starling, tmp_path):
    masked, plain = [ended(starling, tmp_path / str(secure), "virtual", secure) for secure in (True, False)]
    assert values(masked) == pytest.approx(values(plain), abs=1e-4)
    assert masked.models() != plain.models()
