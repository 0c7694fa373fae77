"""What an upload gives away, what noise on it costs, and what may not be told beside it."""

from __future__ import annotations

import math

import pytest

from node import ConfigError, OneShot
from node.privacy.budget import NodeAccountant
from node.privacy.training import sampling_rate
from oneshots import Run, checked, mod

RECORD = {"privacy": {"mechanism": "record", "noise_multiplier": 1.0}}
IID = {"data": {"partition": "iid"}}
STEPS = 25
BETWEEN_S = 5.0
"""Virtual seconds between a training and its upload."""


def test_one_training_is_charged_once():
    run = Run(protocol={"algorithm": "weighted-average"}, **RECORD, **IID)
    records = min(run.setup.workload.shard_size(node) for node in range(1, 7))  # who holds fewest spends most
    accountant = NodeAccountant(unit="record")
    accountant.step(1.0, sampling_rate(run.setup.config.training.batch_size, records), STEPS)
    assert run.summary["privacy"]["epsilon"]["max"] == pytest.approx(accountant.epsilon(1e-5, "rdp"), rel=1e-3)
    assert run.metric("accuracy") > 0.1


def test_a_client_that_comes_back_with_its_model_is_not_charged_again(monkeypatch):
    """It crashes between its training and its upload."""
    at_once = OneShot.upload

    async def later(self, trained):
        await self._ctx.sleep(BETWEEN_S)
        return await at_once(self, trained)

    monkeypatch.setattr(OneShot, "upload", later)
    once = Run(**RECORD, **IID)
    trained_s = once.metric("client_s", node=2) - BETWEEN_S
    times_s = (("crash", trained_s + 1.0), ("return", trained_s + 2.0))
    faults = [{"time_s": time_s, "node": 2, "what": what} for what, time_s in times_s]
    again = Run(**RECORD, **IID, churn={"schedule": faults, "detect_s": 60.0})
    assert again.missing == {}
    assert again.metric("closed_s") > once.metric("closed_s") + 1
    assert again.summary["privacy"]["epsilon"] == once.summary["privacy"]["epsilon"]
    assert again.metric("client_s", node=2) == pytest.approx(trained_s + BETWEEN_S)
    assert again.models == once.models


def test_noise_costs_accuracy():
    accuracies = [
        Run(privacy={"mechanism": "record", "noise_multiplier": noise}, **IID).metric("accuracy")
        for noise in (0.3, 8.0)
    ]
    assert accuracies[0] > accuracies[1] + 0.1


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"protocol": {"algorithm": "ensemble-label-probabilities"}}, "clients reveal 'histogram' of their data"),
        ({"protocol": {"algorithm": "test_oneshot_checks:Scoring"}}, "clients reveal 'statistics' of their data"),
        ({"protocol": {"algorithm": "test_oneshot_checks:DeclaredTraining"}}, "clients train by a loss of their own"),
        (
            {"protocol": {"algorithm": "ensemble-selected"}, "data": {"local_test_fraction": 0.2}},
            "how good their model is on records that nothing protects",
        ),
    ],
)
@pytest.mark.parametrize("mechanism", ["record", "node"])
def test_what_no_noise_covers_is_refused_under_privacy(tables, says, mechanism):
    with pytest.raises(ConfigError) as caught:
        checked(**tables, privacy={"mechanism": mechanism})
    assert says in str(caught.value)
    assert "privacy.mechanism does not cover" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["average", "ensemble-label-probabilities"])
def test_the_aggregator_can_tell_members_from_an_upload(algorithm):
    """Models that have learned a few samples by heart give them away; noise hides them."""
    learned = {"training": {"local_steps": 200}, "nodes": 13, **IID}
    curious = {"attackers": [{"kind": "membership", "nodes": [0], "most": 5}]}
    run = Run(protocol={"algorithm": algorithm}, **learned, **curious)
    plain = Run(protocol={"algorithm": algorithm}, **learned)
    attacked = run.summary["attacks"]["messages"]
    assert {message["attacker"] for message in attacked} == {0}
    assert len({message["victim"] for message in attacked}) == len(attacked) == 5
    assert run.summary["attacks"]["pooled"]["membership_auc"]["estimate"] > 0.6
    assert run.models == plain.models  # who looks changes nothing
    assert run.verdict == plain.verdict


@pytest.mark.parametrize(
    ("protocol", "attacked"),
    [({"upload": "float16"}, 6), ({"upload": "int8"}, 6), ({"algorithm": "fisher"}, 6), ({"algorithm": "ridge"}, 0)],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_models_are_attacked_in_any_precision_and_statistics_are_not(protocol, attacked):
    curious = {"attackers": [{"kind": "membership", "nodes": [0], "most": 20, "final": False}]}
    run = Run(protocol=protocol, **IID, **curious)
    assert run.summary["status"] == "finished"
    assert len(run.summary["attacks"]["messages"]) == attacked


def test_a_byte_a_parameter_gives_away_as_much_as_four():
    learned = {"training": {"local_steps": 200}, "nodes": 13, **IID}
    curious = {"attackers": [{"kind": "membership", "nodes": [0], "most": 12, "final": False}]}
    found = [
        Run(protocol={"upload": upload}, **learned, **curious).summary["attacks"]["messages"]
        for upload in ("float32", "int8")
    ]
    assert [message["victim"] for message in found[0]] == [message["victim"] for message in found[1]]
    fine, coarse = ([message["membership_auc"] for message in messages] for messages in found)
    assert fine != coarse
    assert coarse == pytest.approx(fine, abs=0.05)


def test_noise_hides_members():
    noisy = {"privacy": {"mechanism": "record", "noise_multiplier": 4.0}}
    learned = {"training": {"local_steps": 100}, "data": {"partition": "iid"}, "nodes": 13}
    curious = {"attackers": [{"kind": "membership", "nodes": [0], "most": 5}]}
    aucs = []
    for privacy in ({}, noisy):
        pooled = Run(**learned, **curious, **privacy).summary["attacks"]["pooled"]
        aucs.append(pooled["membership_auc"]["estimate"])
    assert aucs[1] < aucs[0]
    assert abs(aucs[1] - 0.5) < 0.05


# Clients that lie


@pytest.fixture(scope="module")
def honest():
    return label_weighted()


SKEWED = {"data": {"partition": "dirichlet", "alpha": 0.1}, "nodes": 11, "training": {"local_steps": 100}}


def label_weighted(*mods, **protocol):
    return Run(protocol={"algorithm": "ensemble-label-probabilities", **protocol}, mods=list(mods), **SKEWED)


def test_a_client_that_claims_a_hundred_times_its_samples_is_cut_to_what_it_may_claim(honest):
    """Its weight falls to that of the largest clients: within 2 points, on average over liars."""
    most = max(int(honest.setup.workload.shard_size(node)) for node in range(1, 11))
    lost, believed = [], []
    for liar in (2, 5, 9):
        claim = mod("Changing", liar, what="claims", factor=100)
        lost.append(honest.metric("accuracy") - label_weighted(claim, most_samples=most).metric("accuracy"))
        believed.append(honest.metric("accuracy") - label_weighted(claim).metric("accuracy"))
    assert sum(lost) / len(lost) < 0.02
    assert sum(believed) / len(believed) > sum(lost) / len(lost) + 0.02


def test_who_claims_no_more_than_is_allowed_is_believed(honest):
    assert label_weighted(most_samples=100_000).verdict == honest.verdict


def test_more_labels_than_samples_are_no_upload():
    run = Run(protocol={"algorithm": "weighted-average"}, mods=[mod("Changing", 2, what="claims_counts")])
    assert run.missing == {"malformed": [2]}


PLAIN = {
    "ensemble-trimmed": "ensemble-probabilities",
    "ensemble-median": "ensemble-logits",
    "trimmed-average": "average",
}


@pytest.mark.parametrize("algorithm", PLAIN)
def test_two_liars_of_ten_do_less_to_what_trims(algorithm):
    even = {"nodes": 11, "training": {"local_steps": 60}, **IID}
    losses = {
        name: [Run(protocol={"algorithm": name}, mods=lie, **even).metric("loss") for lie in ([], [mod("Loud", 3, 7)])]
        for name in (algorithm, PLAIN[algorithm])
    }
    trimmed, plain = (lied - honest for honest, lied in losses.values())
    assert trimmed < plain or trimmed < 0.05


def test_a_huge_model_decides_logits_and_not_their_median():
    """One diverged client is enough for a mean of logits; the loss tells, where accuracy may still be luck."""
    loud = [mod("Loud", 3)]
    losses = {
        name: Run(protocol={"algorithm": name}, mods=loud, training={"local_steps": 100}, **IID).metric("loss")
        for name in ("ensemble-logits", "ensemble-median", "ensemble-trimmed")
    }
    assert losses["ensemble-median"] < 1 < losses["ensemble-logits"]
    assert losses["ensemble-trimmed"] < 1
    assert all(math.isfinite(loss) for loss in losses.values())
