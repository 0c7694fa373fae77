"""Repair: after any change of members, everything ends up where it belongs, and nothing is lost on the way."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from node.placement.rendezvous import equally, preference
from node.placement.repair import Copy, Drop, Lost, repair

KEYS = [f"object-{number}" for number in range(30)]


def placed(nodes, count, keys=KEYS):
    weights = equally(list(nodes))
    return {key: preference(key, weights)[:count] for key in keys}


def test_where_everything_is_in_its_place_there_are_no_orders():
    assert repair(dict.fromkeys(KEYS, 2), equally([0, 1, 2, 3]), placed(range(4), 2)) == []


@pytest.mark.parametrize("dead", range(4))
def test_what_a_dead_node_held_and_nothing_else_is_copied_from_the_others(dead):
    alive = [node for node in range(4) if node != dead]
    before = placed(range(4), 2)
    held = {key: [node for node in nodes if node != dead] for key, nodes in before.items()}
    orders = repair(dict.fromkeys(KEYS, 2), equally(alive), held)
    assert [order.key for order in orders] == [key for key in KEYS if dead in before[key]]
    for order in orders:
        assert isinstance(order, Copy)
        assert order.target in alive
        assert list(order.sources) == held[order.key]


def test_a_node_that_joins_fetches_what_it_wins_and_then_others_drop_it():
    before, after = placed(range(4), 2), placed(range(5), 2)
    members, replicas = equally(list(range(5))), dict.fromkeys(KEYS, 2)
    copies = repair(replicas, members, before)
    assert [order.key for order in copies] == [key for key in KEYS if 4 in after[key]]
    assert all(isinstance(order, Copy) and order.target == 4 for order in copies)
    holders = {key: sorted({*before[key], *after[key]}) for key in KEYS}
    drops = repair(replicas, members, holders)
    assert len(drops) == len(copies)
    assert all(isinstance(order, Drop) and order.node not in after[order.key] for order in drops)


def test_more_replicas_are_copied_and_fewer_dropped():
    members = equally(list(range(6)))
    order = preference("key", members)
    assert repair({"key": 4}, members, {"key": order[:2]}) == [
        Copy("key", order[2], tuple(order[:2])),
        Copy("key", order[3], tuple(order[:2])),
    ]
    assert repair({"key": 2}, members, {"key": order[:4]}) == [Drop("key", order[2]), Drop("key", order[3])]


def test_nothing_is_dropped_while_somebody_who_should_hold_it_does_not():
    members = equally(list(range(4)))
    first, second, third, fourth = preference("key", members)
    orders = repair({"key": 2}, members, {"key": [third, fourth]})
    assert orders == [Copy("key", node, (third, fourth)) for node in (first, second)]


def test_what_nobody_holds_is_lost():
    assert repair({"key": 2, "other": 1}, equally([0, 1]), {"key": []}) == [Lost("key"), Lost("other")]


def test_a_holder_that_is_no_storage_node_is_a_source_and_is_told_nothing():
    members = equally([0, 1])
    first, second = preference("key", members)
    assert repair({"key": 2}, members, {"key": [9, second]}) == [Copy("key", first, (second, 9))]
    assert repair({"key": 2}, members, {"key": [0, 1, 9]}) == []


def test_with_fewer_nodes_than_replicas_all_hold_everything():
    assert repair({"key": 3}, equally([4, 7]), {"key": {4, 7}}) == []


def test_plans_are_the_same_whatever_order_members_and_holders_are_told_in():
    replicas = dict.fromkeys(KEYS, 3)
    forwards = repair(replicas, equally([0, 1, 2, 3, 4]), {key: [0, 2, 9, 8] for key in KEYS})
    assert forwards == repair(replicas, equally([4, 3, 2, 1, 0]), {key: {9, 8, 2, 0} for key in KEYS})


class Churn(RuleBasedStateMachine):
    """Nodes join and die at random; each plan is carried out in part, from announcements that lag behind."""

    @initialize(count=st.integers(1, 3))
    def begin(self, count):
        self.members = list(range(4))
        self.replicas = dict.fromkeys(KEYS[:8], count)
        self.held = {key: set(nodes) for key, nodes in placed(self.members, count, KEYS[:8]).items()}
        self.announced = {key: set(nodes) for key, nodes in self.held.items()}
        self.joined = 4
        self.lost = set()

    @rule()
    def join(self):
        self.members.append(self.joined)
        self.joined += 1

    @precondition(lambda self: len(self.members) > 1)
    @rule(data=st.data())
    def die(self, data):
        dead = data.draw(st.sampled_from(self.members))
        self.members.remove(dead)
        for key, nodes in self.held.items():
            nodes.discard(dead)
            if not nodes:
                self.lost.add(key)

    @rule(data=st.data())
    def change_replicas(self, data):
        key = data.draw(st.sampled_from(sorted(self.replicas)))
        self.replicas[key] = data.draw(st.integers(1, 4))

    @rule(data=st.data())
    def carry_out_a_part(self, data):
        orders = repair(self.replicas, equally(self.members), self.announced)
        for order in orders:
            if data.draw(st.booleans()):
                self.carry_out(order)

    @rule()
    def announce(self):
        self.announced = {key: set(nodes) for key, nodes in self.held.items()}

    def carry_out(self, order):
        held = self.held[order.key] if not isinstance(order, Lost) else None
        if isinstance(order, Copy) and held & set(order.sources):
            held.add(order.target)
        elif isinstance(order, Drop):
            held.discard(order.node)

    def teardown(self):
        for _ in range(3):
            self.announce()
            for order in repair(self.replicas, equally(self.members), self.announced):
                self.carry_out(order)
        for key, count in self.replicas.items():
            if key not in self.lost:
                assert self.held[key] == set(preference(key, equally(self.members))[:count]), key


TestChurn = Churn.TestCase
TestChurn.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
