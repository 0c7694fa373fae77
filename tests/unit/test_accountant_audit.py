"""What an attack proves of real training never exceeds what the ledger says was spent; and a planted bug is found.

A canary is in the data of half of the nodes: one record whose only non-zero feature is one that nobody else has. Its
gradient moves weights that nothing else moves, so that their way, along the gradient, is the best statistic there is.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from node.attack.audit import audit, verdict
from node.attack.metrics import auc
from node.config import ExperimentConfig
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.learn.data import Dataset, Federation
from node.learn.models import build
from node.learn.partition import Shards
from node.learn.workload import Workload
from node.privacy.dpsgd import PrivateTrainer
from node.privacy.training import PrivateTraining

NODES, RECORDS, FEATURES, CLASSES = 12, 7, 5, 3
RUNS, STEPS, SIGMA, DELTA = 30, 4, 2.0, 1e-5
CANARY = 50.0
CONFIG = ExperimentConfig(
    nodes=NODES,
    protocol={"use": "local", "rounds": 2},
    data={"name": "synthetic", "samples": NODES * RECORDS, "classes": CLASSES, "shape": (FEATURES,)},
    model={"name": "softmax"},
    training={"lr": 0.01, "batch_size": RECORDS + 1, "local_steps": STEPS // 2},
    privacy={"mechanism": "record", "noise_multiplier": SIGMA, "accountant": "gdp", "delta": DELTA},
)
MEMBERS = np.arange(NODES) % 2 == 1


def federation():
    """Records without the last feature, and one with nothing else, which is the last record of every other node."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(NODES * RECORDS + 1, FEATURES, generator=generator)
    features[:, -1] = 0.0
    features[-1] = torch.tensor([0.0] * (FEATURES - 1) + [CANARY])
    labels = torch.randint(0, CLASSES, (len(features),), generator=generator)
    own = [np.arange(RECORDS) + node * RECORDS for node in range(NODES)]
    rows = [np.append(mine, len(features) - 1) if MEMBERS[node] else mine for node, mine in enumerate(own)]
    shards = Shards(np.cumsum([0, *map(len, rows)]), np.concatenate(rows))
    nothing = Shards(np.zeros(NODES + 1, np.int64), np.zeros(0, np.int64))
    data = Dataset(features, labels, CLASSES, None)
    return Federation(data, data, shards, nothing)


@pytest.fixture(scope="module")
def setup():
    """The experiment as it is prepared, on data that have a canary."""
    data = federation()
    model = build(CONFIG.model, (FEATURES,), CLASSES)
    private = PrivateTraining(model, CONFIG.training, CONFIG.privacy, "seeded")
    workload = Workload(data, model, CONFIG.training, 0, private=private)
    return replace(prepare(CONFIG), model=model, workload=workload)


def direction(setup):
    """The canary's gradient at the initial model, flat, of norm 1."""
    model, data = setup.model, federation().train
    parameters = {name: tensor.requires_grad_() for name, tensor in model.named(model.initial(0)).items()}
    loss = torch.nn.functional.cross_entropy(model.forward(parameters, data.features[-1:]), data.labels[-1:])
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(parameters.values()))])
    return (flat / flat.norm()).double().numpy()


def trials(setup):
    """How far each node of each run has gone against the canary's gradient, and what the ledger says was spent."""
    along, start = direction(setup), np.asarray(setup.model.initial(0), np.float64)
    scores, spent = [], set()
    for seed in range(RUNS):
        seeded = replace(setup, config=CONFIG.model_copy(update={"seed": seed}))
        result = run_virtual(seeded, lambda *_: None)
        assert result.status == "finished", result.error
        ways = [start - np.asarray(result.models[node], np.float64) for node in range(NODES)]
        # How many records a node has is no secret, and every step is divided by it.
        scores += [way @ along * (RECORDS + MEMBERS[node]) for node, way in enumerate(ways)]
        spent.add(result.summary(seeded)["privacy"]["epsilon"]["max"])
        result.close()
    (accounted,) = spent
    return np.array(scores), np.tile(MEMBERS, RUNS), accounted


def judged(setup):
    scores, members, accounted = trials(setup)
    found = audit(scores, members, DELTA, np.random.default_rng(1))
    return found, verdict(found, accounted, gaussian=True), scores, members


def test_no_attack_proves_more_than_was_accounted(setup):
    _, verdict_, scores, members = judged(setup)
    assert verdict_.accounted == pytest.approx(4.37717810)  # mu = sqrt(4)/2
    assert verdict_.holds, verdict_.reason
    # The attack is no straw man: it sees all that a canary of norm C shows, mu = sqrt(T)/sigma = 1.
    assert auc(scores, members) == pytest.approx(0.76024994, abs=0.07)


def test_noise_that_is_claimed_and_left_out_is_found(setup, monkeypatch):
    monkeypatch.setattr(PrivateTrainer, "_add_noise", lambda *_: None)
    found, verdict_, _, _ = judged(setup)
    assert verdict_.accounted == pytest.approx(4.37717810)
    assert not verdict_.holds
    assert "REFUTES" in verdict_.reason
    assert found.mu > 2


def test_noise_for_the_wrong_norm_is_found(setup, monkeypatch):
    """Gradients that are clipped to more than the noise is in proportion to."""
    honest = PrivateTrainer._clipped_sum

    def longer(trainer, *given):
        return [part * 6 for part in honest(trainer, *given)]

    monkeypatch.setattr(PrivateTrainer, "_clipped_sum", longer)
    assert not judged(setup)[1].holds
