"""The index of who holds what: announcements that expire, cards, and holders that do not answer."""

import msgspec
import numpy as np
import pytest

from node.errors import BadFrame
from node.placement.index import CLOCK_SKEW_S, PERIOD_S, Announcement, Card, Index
from node.placement.rendezvous import equally, preference
from node.placement.repair import Copy, repair
from node.placement.scuttlebutt import Delta, Entry, encode
from node.placement.silence import Silence

LIFETIME_S = 2 * PERIOD_S + CLOCK_SKEW_S


def card(name, version="v1", published_s=0.0, **other):
    fields = {"rank": 8, "size_bytes": 1000, "base_fingerprint": "base", "profile": b"\x00" * 768, **other}
    return Card(name=name, version=version, published_s=published_s, **fields)


def index(me, now_s=0.0, holds=(), load=0.0):
    made = Index(me, generation=1)
    made.beat(load, 1e6, now_s)
    for key in holds:
        made.hold(key)
    return made


def tell(source, target):
    target.merge(source.newer(target.digest()))


def nodes_of(announcements):
    return [announcement.node for announcement in announcements]


# Holders


def test_an_announcement_says_who_what_and_how():
    one, other = index(0), index(1)
    one.beat(load=3.0, bandwidth_bps=5e8, now_s=10.0)
    one.hold("object", "v7")
    tell(one, other)
    assert other.holders("object", 10.0) == [Announcement("object", "v7", 0, 3.0, 5e8, 10.0 + LIFETIME_S)]
    assert other.holders("unheard of", 10.0) == []


def test_holders_of_one_key_add_up():
    reader = index(9)
    for node in (4, 2, 7):
        tell(index(node, holds=["object"]), reader)
    reader.hold("object")
    assert nodes_of(reader.holders("object", 1.0)) == [2, 4, 7, 9]
    assert reader.holdings(1.0) == {"object": [2, 4, 7, 9]}


def test_who_releases_a_key_takes_away_only_itself():
    reader, one, other = index(9), index(1, holds=["object"]), index(2, holds=["object"])
    for holder in (one, other):
        tell(holder, reader)
    one.release("object")
    tell(one, reader)
    assert nodes_of(reader.holders("object", 1.0)) == [2]
    other.release("object")
    tell(other, reader)
    assert reader.holdings(1.0) == {}


def test_an_announcement_expires_after_two_periods_without_another():
    one, reader = index(0, holds=["object"]), index(1)
    tell(one, reader)
    assert nodes_of(reader.holders("object", LIFETIME_S - 0.1)) == [0]
    assert reader.holders("object", LIFETIME_S) == []
    assert reader.holdings(LIFETIME_S) == {}


def test_a_beat_is_all_that_it_takes_to_stay():
    one, reader = index(0, holds=[f"object-{number}" for number in range(50)]), index(1)
    tell(one, reader)
    for period in range(1, 10):
        one.beat(0.0, 1e6, period * PERIOD_S)
        deltas = one.newer(reader.digest())
        assert sum(len(delta.entries) for delta in deltas) == 1
        reader.merge(deltas)
    assert len(reader.holdings(10 * PERIOD_S)) == 50


def test_who_says_nothing_of_itself_holds_nothing():
    silent, reader = Index(0, generation=1), index(1)
    silent.hold("object")
    tell(silent, reader)
    assert reader.holders("object", 0.0) == []


def test_a_clock_that_is_wrong_by_more_than_is_allowed_is_not_believed():
    reader = index(9, now_s=1000.0)
    for node, ahead_s in [(1, CLOCK_SKEW_S), (2, CLOCK_SKEW_S + 1), (3, -LIFETIME_S), (4, 1e9)]:
        tell(index(node, now_s=1000.0 + ahead_s, holds=["object"]), reader)
    assert nodes_of(reader.holders("object", 1000.0)) == [1]


def test_the_expired_are_forgotten_and_may_come_back():
    one, reader = index(0, holds=["object"]), index(1)
    tell(one, reader)
    reader.beat(0.0, 1e6, LIFETIME_S)
    assert reader.tick(LIFETIME_S - 1) == []
    assert reader.tick(LIFETIME_S) == [0]
    assert list(reader.digest()) == [1]
    one.beat(0.0, 1e6, LIFETIME_S)
    tell(one, reader)
    assert nodes_of(reader.holders("object", LIFETIME_S)) == [0]


def test_a_tick_never_forgets_oneself():
    one = index(0, holds=["object"])
    assert one.tick(1e6) == []
    one.beat(0.0, 1e6, 1e6)
    assert nodes_of(one.holders("object", 1e6)) == [0]


def test_who_is_no_member_any_more_is_forgotten_at_once():
    one, reader = index(0, holds=["object"]), index(1)
    tell(one, reader)
    reader.forget(0)
    reader.forget(77)
    assert reader.holdings(0.0) == {}


def test_a_node_that_starts_again_holds_what_it_says_then():
    one, reader = index(0, holds=["a", "b"]), index(1)
    tell(one, reader)
    again = Index(0, generation=2)
    again.beat(0.0, 1e6, 1.0)
    again.hold("b")
    tell(again, reader)
    assert reader.holdings(1.0) == {"b": [0]}


def test_who_starts_again_under_its_old_generation_hears_of_it_and_begins_anew():
    one, reader = index(0, holds=["a", "b", "c"]), index(1)
    tell(one, reader)
    again = Index(0, generation=1)
    again.beat(0.0, 1e6, 1.0)
    deltas = again.newer(reader.digest())
    reader.merge(deltas)
    assert reader.holdings(1.0) == {}


def test_a_long_story_is_told_in_as_many_answers_as_it_takes():
    one, reader = index(0, holds=[f"object-{number}" for number in range(2500)]), index(1)
    cut = [reader.merge(one.newer(reader.digest())) for _ in range(4)]
    assert cut == [True, True, False, False]
    assert len(reader.holdings(0.0)) == 2500


# Cards


def test_cards_are_listed_by_name_and_the_last_published_version_counts():
    reader = index(9)
    for node, offered in enumerate([card("b"), card("a", "old", 5.0), card("a", "new", 6.0), card("a", "old", 5.0)]):
        holder = index(node)
        holder.publish(offered)
        tell(holder, reader)
    assert [(found.name, found.version) for found in reader.cards(0.0)] == [("a", "new"), ("b", "v1")]


def test_two_versions_published_at_one_time_are_told_apart_alike_everywhere():
    for order in ([0, 1], [1, 0]):
        reader = index(9)
        for node in order:
            holder = index(node)
            holder.publish(card("a", ["x", "y"][node], 5.0))
            tell(holder, reader)
        assert reader.cards(0.0)[0].version == "y"


def test_a_card_stays_while_somebody_offers_it():
    one, other, reader = index(0), index(1), index(9)
    for holder in (one, other):
        holder.publish(card("a"))
        tell(holder, reader)
    one.withdraw("a")
    tell(one, reader)
    assert len(reader.cards(0.0)) == 1
    assert reader.cards(LIFETIME_S) == []
    other.withdraw("a")
    tell(other, reader)
    assert reader.cards(0.0) == []


# Holders that do not answer


def test_a_holder_that_did_not_answer_is_left_out_for_twice_as_long_each_time():
    silence = Silence(first_s=1.0, most_s=8.0)
    waits, now_s = [], 0.0
    for _ in range(6):
        silence.unanswered(3, now_s)
        wait_s = next(wait for wait in (0.5, 1, 2, 4, 8, 16) if not silence.is_out(3, now_s + wait))
        waits.append(wait_s)
        now_s += wait_s
    assert waits == [1, 2, 4, 8, 8, 8]


def test_requests_that_fail_together_count_as_one_failure():
    silence = Silence(first_s=1.0)
    for _ in range(10):
        silence.unanswered(3, 0.0)
    assert silence.is_out(3, 0.9)
    assert not silence.is_out(3, 1.0)


def test_an_answer_wipes_out_what_was():
    silence = Silence(first_s=1.0)
    silence.unanswered(3, 0.0)
    silence.unanswered(3, 1.0)
    silence.answered(3)
    assert not silence.is_out(3, 1.5)
    silence.unanswered(3, 2.0)
    assert not silence.is_out(3, 3.0)


def test_a_node_that_has_been_silent_for_ever_is_asked_again_sometimes():
    silence = Silence(first_s=1.0, most_s=300.0)
    for attempt in range(2000):
        silence.unanswered(3, attempt * 300.0)
    assert not silence.is_out(3, 2000 * 300.0)


def test_the_index_leaves_out_who_does_not_answer_but_repair_counts_it():
    reader = index(9)
    for node in (1, 2):
        tell(index(node, holds=["object"]), reader)
    reader.unanswered(1, 0.0)
    assert nodes_of(reader.holders("object", 0.5)) == [2]
    assert nodes_of(reader.holders("object", 1.0)) == [1, 2]
    assert reader.holdings(0.5) == {"object": [1, 2]}
    reader.unanswered(1, 1.0)
    reader.answered(1)
    assert nodes_of(reader.holders("object", 1.1)) == [1, 2]


# What means nothing


def said(key, value):
    return [Delta(1, 1, 0, (Entry(1, "hold/good", b"v"), Entry(2, key, value)))]


def packed(*values):
    return msgspec.msgpack.encode(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beat", b"\xc1"),
        ("beat", packed(-1.0, 0.0, 0.0)),
        ("beat", packed(float("nan"), 0.0, 0.0)),
        ("beat/other", packed(1.0, 0.0, 0.0)),
        ("hold/x", b"\xff\xff"),
        ("card/x", packed("x")),
        ("card/x", msgspec.msgpack.encode(card("y"))),
        ("card/x", msgspec.msgpack.encode(card("x", profile=b"0" * 4000))),
        ("nonsense/x", b""),
        ("", b""),
    ],
)
def test_what_cannot_be_meant_is_refused_as_a_whole(key, value):
    reader = index(9)
    before = encode(reader.digest())
    with pytest.raises(BadFrame, match="is not announced"):
        reader.merge(said(key, value))
    assert encode(reader.digest()) == before
    assert reader.holdings(0.0) == {}


# All together


def test_everybody_gets_to_know_everything_by_gossip_with_a_few():
    rng = np.random.default_rng(8)
    count = 24
    nodes = [index(node, holds=[f"object-{node}", f"object-{(node + 1) % count}"]) for node in range(count)]
    rounds = 0
    while any(len(node.holdings(1.0)) < count or len(node.digest()) < count for node in nodes):
        rounds += 1
        for node in nodes:
            tell(nodes[rng.integers(count)], node)
    assert rounds <= 12
    expected = {f"object-{number}": sorted([number, (number - 1) % count]) for number in range(count)}
    assert all(node.holdings(1.0) == expected for node in nodes)


def test_a_storage_node_that_dies_is_noticed_and_repaired_from_the_index_alone():
    keys = [f"object-{number}" for number in range(40)]
    members = equally(list(range(5)))
    storages = {node: index(node) for node in members}
    for key in keys:
        for node in preference(key, members)[:2]:
            storages[node].hold(key)
    reader = index(9)
    for storage in storages.values():
        tell(storage, reader)
    assert repair(dict.fromkeys(keys, 2), members, reader.holdings(1.0)) == []
    # Two periods later all but node 3 have said again that they are there.
    for node, storage in storages.items():
        if node != 3:
            storage.beat(0.0, 1e6, LIFETIME_S)
            tell(storage, reader)
    assert reader.tick(LIFETIME_S) == [3]
    alive = equally([0, 1, 2, 4])
    orders = repair(dict.fromkeys(keys, 2), alive, reader.holdings(LIFETIME_S))
    assert {order.key for order in orders} == {key for key in keys if 3 in preference(key, members)[:2]}
    for order in orders:
        assert isinstance(order, Copy)
        storages[order.target].hold(order.key)
        tell(storages[order.target], reader)
    assert repair(dict.fromkeys(keys, 2), alive, reader.holdings(LIFETIME_S)) == []
