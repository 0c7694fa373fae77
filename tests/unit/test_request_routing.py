"""Which compute node a request goes to."""

from collections import Counter

import numpy as np
import pytest

from node.batching.routing import STRATEGIES, Option, Router, Server
from node.errors import ConfigError, Missing

IDLE = {node: Server() for node in range(4)}


def router(strategy, seed=0):
    return Router(strategy, np.random.default_rng(seed))


def node_of(strategy, adapter, servers):
    return router(strategy).choose([Option({adapter: 100})], servers)[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_node_serves_everything_and_none_nothing(strategy):
    assert node_of(strategy, "a", {7: Server(load=9)}) == 7
    with pytest.raises(Missing, match="no compute node"):
        router(strategy).choose([Option({"a": 1})], {})


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"routing: 'nearest' .* rendezvous"):
        router("nearest")


def test_rendezvous_keeps_an_adapter_at_its_node_whatever_the_load():
    loaded = {node: Server(load=node * 10) for node in range(4)}
    for adapter in "abcdefgh":
        assert node_of("rendezvous", adapter, IDLE) == node_of("rendezvous", adapter, loaded)
    assert len({node_of("rendezvous", f"a{i}", IDLE) for i in range(50)}) == 4


def test_when_a_node_goes_only_its_adapters_move():
    before = {f"a{i}": node_of("rendezvous", f"a{i}", IDLE) for i in range(100)}
    left = {node: server for node, server in IDLE.items() if node != 2}
    moved = {adapter for adapter, node in before.items() if node_of("rendezvous", adapter, left) != node}
    assert moved == {adapter for adapter, node in before.items() if node == 2}


def test_random_is_even_and_repeats_with_its_seed():
    first, again = router("random"), router("random")
    chosen = [first.choose([Option({"a": 1})], IDLE)[0] for _ in range(2_000)]
    assert chosen == [again.choose([Option({"a": 1})], IDLE)[0] for _ in range(2_000)]
    assert all(400 < count < 600 for count in Counter(chosen).values())


def test_least_loaded_looks_at_nothing_else():
    assert node_of("least-loaded", "a", {0: Server(load=2), 1: Server(load=1), 2: Server(load=5)}) == 1


def test_bounded_loads_overflow_to_the_next_in_rank():
    home = node_of("rendezvous", "a", IDLE)
    assert node_of("bounded", "a", IDLE) == home
    crowded = {**IDLE, home: Server(load=3)}
    assert node_of("bounded", "a", crowded) != home


def test_bounded_loads_keep_their_bound():
    loads = dict.fromkeys(range(4), 0)
    for _ in range(400):
        loads[node_of("bounded", "a", {node: Server(load=load) for node, load in loads.items()})] += 1
    assert max(loads.values()) <= np.ceil(1.25 * 400 / 4)


def test_two_choices_takes_the_less_loaded_of_an_adapters_first_two():
    first = node_of("rendezvous", "a", IDLE)
    second = node_of("rendezvous", "a", {node: server for node, server in IDLE.items() if node != first})
    assert node_of("two-choices", "a", IDLE) == first
    assert node_of("two-choices", "a", {**IDLE, first: Server(load=1)}) == second
    everyone = {node: Server(load=9 if node in (first, second) else 0) for node in IDLE}
    assert node_of("two-choices", "a", everyone) in (first, second)


def test_cost_weighs_waiting_against_fetching():
    has = Server(slot_wait_s=1.0, resident=frozenset("a"))
    near = Server(bandwidth_bytes_per_s=200.0, rtt_s=0.1)
    assert has.first_token_s({"a": 100}) == 1.0
    assert near.first_token_s({"a": 100}) == pytest.approx(0.6)
    assert node_of("cost", "a", {0: has, 1: near}) == 1
    assert node_of("cost", "a", {0: has, 1: Server(link_free_in_s=0.6, rtt_s=0.1, bandwidth_bytes_per_s=200.0)}) == 0


def test_fetching_goes_on_while_a_request_waits_for_its_place():
    server = Server(slot_wait_s=2.0, rtt_s=0.5, bandwidth_bytes_per_s=100.0)
    assert server.first_token_s({"a": 100}) == 2.0
    assert server.first_token_s({"a": 100, "b": 100}) == 2.5
    assert server.first_token_s({}) == 2.0


def test_cost_takes_a_nearly_as_good_adapter_that_is_there_already():
    best, resident = Option({"best": 1_000}), Option({"good": 1_000}, penalty_s=0.5)
    servers = {0: Server(resident=frozenset({"good"}), bandwidth_bytes_per_s=1_000.0)}
    assert router("cost").choose([best, resident], servers) == (0, resident)
    dear = Option({"good": 1_000}, penalty_s=2.0)
    assert router("cost").choose([best, dear], servers) == (0, best)


def test_equal_costs_are_decided_by_rank():
    for adapter in "abcdef":
        assert node_of("cost", adapter, IDLE) == node_of("rendezvous", adapter, IDLE)
