"""A node's privacy budget: what steps cost together, what is refused, what survives a restart; and the command line."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cli import privacy as commands
from node.errors import BudgetSpent, ConfigError
from node.privacy import gaussian, rdp
from node.privacy.budget import VIEWS, Budget, Guarantee, NodeAccountant

DELTA = 1e-5
WHOLE = {
    "epsilon": 1.0,
    "delta": DELTA,
    "adjacency": "add_remove",
    "unit": "record",
    "view": "T3",
    "adaptive": True,
    "conversion": "rdp",
}


def spent(*steps, **arguments):
    accountant = NodeAccountant(**arguments)
    for step in steps:
        accountant.step(*step)
    return accountant


def test_the_headline_case():
    assert spent((1, 0.01, 1000)).epsilon(DELTA) == pytest.approx(2.101365, abs=1e-6)


def test_single_steps_add_up_to_many():
    one_by_one = spent(*[(1.0, 0.01)] * 50)
    assert one_by_one.epsilon(DELTA) == spent((1.0, 0.01, 50)).epsilon(DELTA)


def test_steps_of_different_kinds_add_their_curves():
    curve = 30 * rdp.poisson(1, 0.1) + 20 * rdp.poisson(2, 0.2)
    assert spent((1, 0.1, 30), (2, 0.2, 20)).epsilon(DELTA) == pytest.approx(rdp.epsilon_of(curve, DELTA)[0])


def test_all_records_have_an_exact_answer():
    accountant = spent((4, 1, 100))
    assert accountant.epsilon(DELTA, "gdp") == pytest.approx(13.20671224)
    assert accountant.epsilon(DELTA, "zcdp") == pytest.approx(gaussian.zcdp_epsilon_of(2.5, DELTA))
    assert accountant.epsilon(DELTA, "rdp") > accountant.epsilon(DELTA, "gdp")


def test_replacing_moves_a_sum_twice_as_far():
    replaced = spent((8, 1, 100), adjacency="replace_one", unit="node")
    assert replaced.epsilon(DELTA, "gdp") == pytest.approx(13.20671224)
    assert replaced.epsilon(DELTA, "rdp") == pytest.approx(14.132226, abs=1e-6)


def test_batches_of_a_fixed_size():
    accountant = spent((2, 0.01, 1000), adjacency="replace_one", sampling="fixed_size")
    assert accountant.epsilon(DELTA) == pytest.approx(3.576111, abs=1e-6)


def test_small_figures_are_found_by_high_orders():
    for sigma, q, n in ((50, 1, 1), (100, 0.01, 100), (20, 0.01, 100)):
        few = rdp.epsilon_of(n * rdp.poisson(sigma, q), DELTA)[0]
        assert spent((sigma, q, n)).epsilon(DELTA) < 0.7 * few
    exact = spent((50, 1, 1)).epsilon(DELTA, "gdp")
    assert exact < spent((50, 1, 1)).epsilon(DELTA) < 1.5 * exact


@pytest.mark.parametrize("method", ["rdp", "gdp", "zcdp", "pld"])
def test_noise_without_end_costs_nothing(method):
    assert spent((math.inf, 1, 5)).epsilon(DELTA, method) == 0
    assert spent((math.inf, 1, 5), (1, 0.01, 1000)).epsilon(DELTA) == spent((1, 0.01, 1000)).epsilon(DELTA)


def test_nothing_done_costs_nothing():
    assert NodeAccountant().epsilon(DELTA) == 0
    assert spent((1, 0.0, 1000), (1, 0.5, 0)).epsilon(DELTA) == 0
    assert NodeAccountant().epsilon(DELTA, "gdp") == 0


@pytest.mark.parametrize("method", ["rdp", "gdp", "zcdp", "pld"])
def test_a_step_without_noise_costs_everything(method):
    assert spent((1, 1, 5), (0, 1, 1)).epsilon(DELTA, method) == math.inf


def test_an_empty_batch_counts_as_a_step():
    # What was drawn is not told, and does not matter: the rate does.
    assert spent((1, 1e-6, 10)).epsilon(DELTA) >= 0
    assert spent((1, 0.01, 1001)).epsilon(DELTA) > spent((1, 0.01, 1000)).epsilon(DELTA)


@settings(max_examples=8)
@given(st.floats(0.7, 5), st.floats(0.001, 0.5), st.integers(1, 300), st.integers(1, 300))
def test_monotone_in_everything(sigma, q, n, more):
    epsilon = spent((sigma, q, n)).epsilon(DELTA)
    assert spent((sigma, q, n + more)).epsilon(DELTA) >= epsilon
    assert spent((sigma, min(1.0, 2 * q), n)).epsilon(DELTA) >= epsilon - 1e-9
    assert spent((2 * sigma, q, n)).epsilon(DELTA) <= epsilon + 1e-9
    assert spent((sigma, q, n)).epsilon(DELTA * 10) <= epsilon


# Budgets


def test_the_step_that_would_exceed_is_refused_and_not_entered():
    accountant = NodeAccountant(budget=Budget(2.1, DELTA))
    accountant.step(1, 0.01, 900)
    before = accountant.epsilon(DELTA)
    assert not accountant.would_exceed(1, 0.01)
    assert accountant.would_exceed(1, 0.01, 100)
    with pytest.raises(
        BudgetSpent, match=r"epsilon 2.1 at delta 1e-05 does not allow 100 more steps.*2\.0\d+ is spent"
    ):
        accountant.step(1, 0.01, 100)
    assert accountant.epsilon(DELTA) == before
    accountant.step(1, 0.01)


def test_one_by_one_up_to_the_limit():
    accountant = NodeAccountant(budget=Budget(1.0, DELTA))
    steps = 0
    while not accountant.would_exceed(1, 0.01):
        accountant.step(1, 0.01)
        steps += 1
    assert spent((1, 0.01, steps)).epsilon(DELTA) <= 1.0 < spent((1, 0.01, steps + 1)).epsilon(DELTA)
    with pytest.raises(BudgetSpent):
        accountant.step(1, 0.01)


def test_a_budget_is_counted_by_its_own_method():
    by_rdp, exactly = (NodeAccountant(budget=Budget(13.5, DELTA, method)) for method in ("rdp", "gdp"))
    assert by_rdp.would_exceed(4, 1, 100)
    assert not exactly.would_exceed(4, 1, 100)


def test_without_a_budget_nothing_exceeds():
    assert not NodeAccountant().would_exceed(0, 1, 10**6)


# State


def test_a_restart_forgets_nothing():
    accountant = spent((1, 0.1, 3), (2.5, 0.2, 4), unit="node")
    state = json.loads(json.dumps(accountant.state()))
    again = NodeAccountant.restored(state)
    assert again.state() == accountant.state()
    assert again.epsilon(DELTA) == accountant.epsilon(DELTA)
    again.step(1, 0.1)
    assert again.state() != accountant.state()


def test_a_budget_lowered_since_is_not_an_error_until_the_next_step():
    again = NodeAccountant.restored(spent((1, 0.1, 1000)).state(), Budget(0.1, DELTA))
    assert again.epsilon(DELTA) > 0.1
    with pytest.raises(BudgetSpent):
        again.step(1, 0.1)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"unit": "record", "adjacency": "add_remove", "sampling": "poisson"},
        {"unit": "record", "adjacency": "add_remove", "sampling": "poisson", "steps": [[1, 2]]},
        {"unit": "record", "adjacency": "add_remove", "sampling": "poisson", "steps": [["x", 0.1, 2]]},
    ],
)
def test_a_broken_state_is_refused(state):
    with pytest.raises(ConfigError, match="not the saved state"):
        NodeAccountant.restored(state)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NodeAccountant(unit="batch"), "unit: 'batch'; allowed: record, node"),
        (lambda: NodeAccountant(adjacency="zero_out"), "adjacency: 'zero_out'; allowed: add_remove, replace_one"),
        (lambda: NodeAccountant(sampling="shuffled"), "sampling: 'shuffled'; allowed: poisson, fixed_size"),
        (lambda: NodeAccountant(sampling="fixed_size"), "adjacency: batches of a fixed size"),
        (lambda: NodeAccountant(budget=Budget(-1, DELTA)), "epsilon: -1"),
        (lambda: NodeAccountant(budget=Budget(1, 0)), "delta: 0"),
        (lambda: NodeAccountant(budget=Budget(1, DELTA, "clt")), "method: 'clt'; allowed: rdp, pld, gdp, zcdp"),
        (lambda: NodeAccountant().epsilon(DELTA, "clt"), "method: 'clt'"),
        (lambda: NodeAccountant().epsilon(2), "delta: 2"),
        (lambda: NodeAccountant().step(-1, 0.5), "sigma: -1"),
        (lambda: NodeAccountant().step(1, 1.5), "q: 1.5"),
        (lambda: NodeAccountant().step(1, 0.5, -1), "n: -1"),
        (
            lambda: spent((1, 0.5)).epsilon(DELTA, "gdp"),
            "gdp has no bound for random batches.*allowed here: rdp or pld",
        ),
        (lambda: spent((1, 0.5), adjacency="replace_one").epsilon(DELTA), "rdp has no bound.*allowed here: pld"),
        (
            lambda: spent((1, 0.5), adjacency="replace_one", sampling="fixed_size").epsilon(DELTA, "pld"),
            "pld has no bound.*allowed here: rdp",
        ),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


# Guarantees


def test_a_guarantee_carries_what_it_means():
    guarantee = spent((1, 0.01, 1000)).guarantee(DELTA, "T3")
    assert guarantee == Guarantee(**{**WHOLE, "epsilon": guarantee.epsilon})
    assert str(guarantee) == (
        "(2.101, 1e-05)-DP per record, add-remove, against T3 (eavesdropper on all links), adaptive, by RDP"
    )


@pytest.mark.parametrize("field", WHOLE)
def test_a_guarantee_does_not_exist_without(field):
    with pytest.raises(TypeError, match=field):
        Guarantee(**{name: value for name, value in WHOLE.items() if name != field})


@pytest.mark.parametrize("field", [name for name in WHOLE if name != "epsilon"])
def test_a_guarantee_refuses_an_empty(field):
    with pytest.raises((ConfigError, TypeError)):
        Guarantee(**{**WHOLE, field: None})


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon", -1), ("epsilon", math.nan), ("delta", 0), ("view", "T9"), ("conversion", "clt"), ("adaptive", "no")],
)
def test_a_guarantee_refuses(field, value):
    with pytest.raises(ConfigError, match=field):
        Guarantee(**{**WHOLE, field: value})


def test_no_privacy_at_all_is_said():
    assert str(Guarantee(**{**WHOLE, "epsilon": math.inf})) == "no differential privacy"


def test_every_view_has_words():
    assert list(VIEWS) == [f"T{number}" for number in range(1, 8)]
    assert all(VIEWS.values())


# The command line


def test_epsilon_is_one_number(capsys):
    commands.epsilon(sigma=1, q=0.01, steps=1000, delta=DELTA)
    assert capsys.readouterr().out == "2.101366\n"


def test_sigma_is_one_number_that_keeps_its_promise(capsys):
    commands.sigma(epsilon=1, q=0.01, steps=1000, delta=DELTA)
    printed = float(capsys.readouterr().out)
    assert printed == pytest.approx(1.513122, abs=2e-6)
    assert spent((printed, 0.01, 1000)).epsilon(DELTA) <= 1


def test_no_noise_prints_infinity(capsys):
    commands.epsilon(sigma=0, q=1, steps=1, delta=DELTA, accountant="gaussian", adjacency="replace_one")
    assert capsys.readouterr().out == "inf\n"


def test_the_command_line_refuses_in_words():
    with pytest.raises(ConfigError, match="--accountant moments: allowed: rdp, pld, gaussian"):
        commands.epsilon(sigma=1, q=1, steps=10, delta=DELTA, accountant="moments")
    with pytest.raises(ConfigError, match="q: 2"):
        commands.sigma(epsilon=1, q=2, steps=10, delta=DELTA)


def test_the_command_line_names_what_was_typed(monkeypatch):
    for changed, says in (
        ({"steps": -1}, "--steps: -1; allowed"),
        ({"sigma": -1}, "--sigma: -1; allowed"),
        ({"q": 2}, "--q: 2; allowed"),
        ({"delta": 0}, "--delta: 0; allowed"),
        ({"q": 0.5, "accountant": "gaussian"}, "--accountant gaussian: has no bound for random batches"),
        ({"adjacency": "near"}, "--adjacency: 'near'; allowed"),
    ):
        with pytest.raises(ConfigError, match=f"^{says}"):
            commands.epsilon(**{"sigma": 1, "q": 1, "steps": 10, "delta": DELTA, **changed})
    with pytest.raises(ConfigError, match=r"^--epsilon: -1"):
        commands.sigma(epsilon=-1, steps=10, delta=DELTA, accountant="gaussian")


def test_an_epsilon_that_no_order_shows_names_other_accountants(capsys):
    with pytest.raises(ConfigError, match=r"^--epsilon: 0.001 is less than rdp can show.*--accountant gaussian"):
        commands.sigma(epsilon=0.001, steps=1, delta=DELTA)
    commands.sigma(epsilon=0.001, steps=1, delta=DELTA, accountant="gaussian")
    assert float(capsys.readouterr().out) > 10
    commands.sigma(epsilon=0.05, steps=1, delta=DELTA)
    assert 10 < float(capsys.readouterr().out) < 100
