"""What nodes spend of their privacy: charged before they train, shared where equal, kept where a process may end."""

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import durable
from node.config import PrivacySection
from node.errors import BudgetSpent, ConfigError, Corrupt, StoreError
from node.live.spending import Spending
from node.privacy import budget
from node.privacy.budget import NodeAccountant
from node.privacy.ledger import Ledger, guarantee
from node.privacy.training import sampling_rate

RECORDS = {0: 100, 1: 50, 2: 10, 3: 0}


def ledger(keep=None, records=RECORDS.get, **privacy):
    section = PrivacySection(**{"mechanism": "record", **privacy})
    return Ledger(section, 16, records, *([] if keep is None else [keep]))


def accounted(*steps, **arguments):
    accountant = NodeAccountant(**arguments)
    for step in steps:
        accountant.step(*step)
    return accountant.epsilon(1e-5)


# Charging


def test_a_record_s_share_is_of_its_own_node():
    books = ledger(noise_multiplier=1.5)
    for node in (0, 1, 2):
        assert books.charge(node, 5)
        assert books.charge(node, 3)
    for node, rate in ((0, 0.16), (1, 0.32), (2, 1.0)):
        assert books.spent(node) == {"epsilon": accounted((1.5, rate, 8))}


def test_a_node_s_update_is_one_step_however_long_it_was_trained():
    books = ledger(mechanism="node", accountant="gdp")
    books.charge(0, 5)
    books.charge(0, 500)
    assert books.spent(0)["epsilon"] == pytest.approx(NodeAccountant.restored(books.states()[0]).epsilon(1e-5, "gdp"))
    assert books.states()[0]["steps"] == [[1.0, 1.0, 2]]
    assert books.states()[0]["unit"] == "node"


def test_nothing_is_spent_before_and_nothing_told_of_who_has_no_data():
    books = ledger()
    assert books.spent(0) == {"epsilon": 0.0}
    assert books.spent(3) == {}


def test_without_noise_everything_is_spent():
    books = ledger(noise_multiplier=0)
    books.charge(1, 1)
    assert books.spent(1) == {"epsilon": math.inf}


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_rate_is_a_probability_of_the_batch_s_size(batch_size, records):
    rate = sampling_rate(batch_size, records)
    assert 0 < rate <= 1
    assert rate * records == pytest.approx(min(batch_size, records))


# Budgets


def test_a_budget_stops_the_node_and_says_which():
    books = ledger(epsilon=2.0, noise_multiplier=2.0)
    taken = max(n for n in range(500) if accounted((2.0, 0.32, n)) <= 2.0)
    for _ in range(taken):
        assert books.charge(1, 1)
    with pytest.raises(BudgetSpent, match=r"^node 1 has spent its privacy: the budget of epsilon 2 at delta 1e-05"):
        books.charge(1, 1)
    assert taken > 0
    assert accounted((2.0, 0.32, taken)) <= 2.0 < accounted((2.0, 0.32, taken + 1))
    assert books.spent(1)["epsilon"] == accounted((2.0, 0.32, taken))
    assert books.charge(0, 1)


def test_a_node_may_go_on_without_its_data():
    kept = []
    books = ledger(lambda node, state: kept.append(node), epsilon=2.0, noise_multiplier=2.0, when_spent="relay")
    while books.charge(1, 1):
        pass
    before = len(kept)
    assert not books.charge(1, 1)
    assert len(kept) == before
    assert books.spent(1)["epsilon"] <= 2.0


# Keeping


def test_what_is_kept_is_kept_before_the_training():
    kept = []
    books = ledger(lambda node, state: kept.append((node, dict(state))))
    books.charge(2, 4)
    assert kept == [(2, books.states()[2])]
    assert kept[0][1]["steps"] == [[1.0, 1.0, 4]]


def test_a_training_that_cannot_be_kept_does_not_begin():
    def full(node, state):
        raise StoreError("full")

    with pytest.raises(StoreError):
        ledger(full).charge(0, 1)


def test_a_restart_goes_on_where_it_was():
    before = ledger(epsilon=9.0)
    before.charge(0, 7)
    again = ledger(epsilon=9.0)
    again.restore(0, before.states()[0])
    assert again.spent(0) == before.spent(0)
    again.charge(0, 1)
    assert again.states()[0]["steps"] == [[1.0, 0.16, 8]]


def test_other_noise_since_adds_up():
    before = ledger(noise_multiplier=2.0)
    before.charge(0, 7)
    again = ledger(noise_multiplier=1.0)
    again.restore(0, before.states()[0])
    again.charge(0, 2)
    assert again.spent(0) == {"epsilon": accounted((2.0, 0.16, 7), (1.0, 0.16, 2))}


def test_units_do_not_add_up():
    before = ledger(mechanism="node")
    before.charge(0, 1)
    with pytest.raises(ConfigError, match=r"privacy.mechanism: node 0 has spent privacy per node, .* per record"):
        ledger().restore(0, before.states()[0])


def test_a_state_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="not the saved state"):
        ledger().restore(0, {"steps": []})


# Many nodes


def test_equal_nodes_share_the_work(monkeypatch):
    found = []
    real = budget.rdp.epsilon_of
    monkeypatch.setattr(budget.rdp, "epsilon_of", lambda *given: found.append(1) or real(*given))
    budget._epsilon_of.cache_clear()
    books = ledger(records=lambda node: 90 + node % 3, epsilon=100.0)
    for _ in range(4):
        for node in range(300):
            books.charge(node, 5)
            books.spent(node)
    assert len(found) == 3 * 4


def test_ten_thousand_nodes_are_small():
    books = ledger(records=lambda node: 100)
    tracemalloc.start()
    for node in range(10_000):
        books.charge(node, 5)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 10_000 * 800


# Guarantees


def test_an_epsilon_comes_with_what_it_means():
    books = ledger(view="T3", delta=1e-6)
    books.charge(0, 10)
    found = books.guarantee(0)
    assert found.epsilon == books.spent(0)["epsilon"]
    assert (found.unit, found.adjacency, found.view, found.delta) == ("record", "add_remove", "T3", 1e-6)
    assert guarantee(PrivacySection(mechanism="node"), 1.0).unit == "node"


# On disk


def test_a_state_comes_back_to_the_last_bit(tmp_path):
    state = accounted_state()
    spending = Spending(tmp_path / "spent.json")
    assert spending.load() is None
    spending.keep(state)
    assert Spending(tmp_path / "spent.json").load() == state
    assert [path.name for path in tmp_path.iterdir()] == ["spent.json"]


def accounted_state():
    accountant = NodeAccountant()
    accountant.step(0.1 + 0.2, 1 / 3, 7)
    return accountant.state()


def test_it_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """Whoever is killed between two calls finds the state before or the one after."""
    calls = []
    fsync, replace = durable.os.fsync, type(tmp_path).replace
    monkeypatch.setattr(durable.os, "fsync", lambda fd: calls.append("sync") or fsync(fd))
    monkeypatch.setattr(type(tmp_path), "replace", lambda path, target: calls.append("rename") or replace(path, target))
    Spending(tmp_path / "spent.json").keep(accounted_state())
    assert calls == ["sync", "rename", "sync"]


def test_a_half_written_successor_is_not_read(tmp_path):
    spending = Spending(tmp_path / "spent.json")
    spending.keep(accounted_state())
    (tmp_path / "spent.json.new").write_bytes(b"half")
    assert spending.load() == accounted_state()
    spending.keep(accounted_state())


@pytest.mark.parametrize("tear", ["cut", "flip", "empty"])
def test_a_damaged_state_is_not_forgotten_in_silence(tmp_path, tear):
    path = tmp_path / "spent.json"
    Spending(path).keep(accounted_state())
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    path.write_bytes({"cut": data[:-9], "flip": flipped, "empty": b""}[tear])
    with pytest.raises(Corrupt, match=r"spent.json: is damaged.*restore it from a copy"):
        Spending(path).load()


def test_a_folder_that_takes_nothing_stops_the_training(tmp_path):
    with pytest.raises(StoreError, match="without it nothing may be trained"):
        Spending(tmp_path / "missing" / "spent.json").keep(accounted_state())
    with pytest.raises(StoreError, match="cannot be read"):
        Spending(tmp_path).load()
