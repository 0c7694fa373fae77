"""Anti-entropy of maps: everybody gets to know the newest of everything, whatever gets lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadFrame
from node.placement.scuttlebutt import (
    MOST_ENTRIES,
    MOST_VALUE_BYTES,
    Change,
    Delta,
    Entry,
    Known,
    Scuttlebutt,
    decode_deltas,
    decode_digest,
    encode,
)


def tell(source, target, **limit):
    """One exchange in one direction."""
    return target.merge(source.newer(target.digest(), **limit))


def pair():
    return Scuttlebutt(0, generation=1), Scuttlebutt(1, generation=1)


# Writing and telling


def test_what_is_written_is_told_once():
    one, other = pair()
    one.put("a", b"1")
    one.put("b", b"2")
    assert tell(one, other) == [Change(0, "a", b"1"), Change(0, "b", b"2")]
    assert other.get(0, "a") == b"1"
    assert tell(one, other) == []


def test_only_the_newest_value_of_a_key_is_told():
    one, other = pair()
    for value in (b"1", b"2", b"3"):
        one.put("a", value)
    one.put("b", b"4")
    assert tell(one, other) == [Change(0, "a", b"3"), Change(0, "b", b"4")]
    assert other.digest()[0] == Known(1, 4)


def test_writing_what_is_so_already_is_no_change():
    one, other = pair()
    one.put("a", b"1")
    one.put("missing", None)
    before = one.digest()
    one.put("a", b"1")
    assert one.digest() == before == {0: Known(1, 1)}
    assert tell(one, other) == [Change(0, "a", b"1")]


def test_that_a_key_is_gone_is_told_too():
    one, other = pair()
    one.put("a", b"1")
    tell(one, other)
    one.put("a", None)
    assert tell(one, other) == [Change(0, "a", None)]
    assert other.get(0, "a") is None


def test_what_others_say_is_passed_on():
    one, other = pair()
    third = Scuttlebutt(2, generation=1)
    one.put("a", b"1")
    tell(one, other)
    assert tell(other, third) == [Change(0, "a", b"1")]


def test_an_unknown_writer_or_key_has_no_value():
    one, _ = pair()
    assert one.get(7, "a") is None
    assert one.get(0, "a") is None


def test_an_answer_that_is_cut_is_continued_by_the_next():
    one, other = pair()
    for number in range(25):
        one.put(f"key-{number}", b"")
    rounds = []
    while changes := tell(one, other, most_entries=10):
        rounds.append(len(changes))
    assert rounds == [10, 10, 5]
    assert other.digest()[0] == one.digest()[0]


def test_a_limit_is_for_all_writers_together():
    one, other = pair()
    third = Scuttlebutt(2, generation=1)
    for number in range(6):
        one.put(f"key-{number}", b"")
        other.put(f"key-{number}", b"")
    tell(one, other)
    deltas = other.newer(third.digest(), most_entries=9)
    assert [(delta.writer, len(delta.entries)) for delta in deltas] == [(0, 6), (1, 3)]


# Losses, gaps and other lives


def test_deltas_that_come_twice_or_late_change_nothing():
    one, other = pair()
    one.put("a", b"1")
    early = one.newer(other.digest())
    one.put("a", b"2")
    other.merge(one.newer(other.digest()))
    assert other.merge(early) == []
    assert other.get(0, "a") == b"2"


def test_a_delta_with_a_gap_before_it_is_passed_over():
    one, other = pair()
    one.put("a", b"1")
    digest = {0: one.digest()[0]}
    one.put("b", b"2")
    gap = one.newer(digest)
    assert gap[0].since == 1
    assert other.merge(gap) == []
    assert tell(one, other) == [Change(0, "a", b"1"), Change(0, "b", b"2")]


def test_a_writer_that_starts_again_without_memory_makes_all_before_void():
    one, other = pair()
    one.put("a", b"1")
    one.put("b", b"2")
    tell(one, other)
    again = Scuttlebutt(0, generation=5)
    again.put("b", b"3")
    assert tell(again, other) == [Change(0, "a", None), Change(0, "b", None), Change(0, "b", b"3")]
    assert tell(one, other) == []
    assert other.get(0, "a") is None


def test_an_earlier_life_is_not_heard_however_long_it_was():
    one, other = pair()
    again = Scuttlebutt(0, generation=5)
    again.put("a", b"new")
    tell(again, other)
    for number in range(9):
        one.put(f"key-{number}", b"old")
    assert other.merge(one.newer({})) == []
    assert other.get(0, "key-8") is None


def test_a_writer_outdoes_what_others_know_of_a_later_self():
    one, other = pair()
    one.put("a", b"1")
    one.put("a", b"2")
    tell(one, other)
    forgetful = Scuttlebutt(0, generation=1)
    forgetful.put("b", b"3")
    forgetful.object(other.digest())
    assert forgetful.digest() == {0: Known(2, 1)}
    tell(forgetful, other)
    assert (other.get(0, "a"), other.get(0, "b")) == (None, b"3")


def test_a_forged_word_about_oneself_is_outdone():
    one, other = pair()
    one.put("a", b"1")
    forged = Delta(0, 1, 0, (Entry(99, "a", b"forged"),))
    other.merge([forged])
    assert other.get(0, "a") == b"forged"
    assert tell(other, one) == []
    assert one.get(0, "a") == b"1"
    tell(one, other)
    assert other.get(0, "a") == b"1"


def test_ones_own_older_words_are_nothing_to_object_to():
    one, other = pair()
    one.put("a", b"1")
    tell(one, other)
    late = other.newer({})
    one.put("a", b"2")
    one.merge(late)
    one.object(other.digest())
    assert one.digest()[0] == Known(1, 2)


def test_a_new_life_leaves_behind_what_was_gone():
    one, _ = pair()
    one.put("a", b"1")
    one.put("b", b"2")
    one.put("a", None)
    one.object({0: Known(7, 0)})
    assert one.digest()[0] == Known(8, 1)
    assert (one.get(0, "a"), one.get(0, "b")) == (None, b"2")


def test_who_is_forgotten_can_be_learnt_again():
    one, other = pair()
    one.put("a", b"1")
    one.put("b", b"2")
    one.put("b", None)
    tell(one, other)
    assert other.forget(0) == [Change(0, "a", None)]
    assert other.forget(0) == []
    assert tell(one, other) == [Change(0, "a", b"1"), Change(0, "b", None)]


def test_keys_without_end_are_not_kept(monkeypatch):
    monkeypatch.setattr("node.placement.scuttlebutt.MOST_KEYS", 3)
    one, other = pair()
    for number in range(10):
        one.put(f"key-{number}", b"1")
    assert len(tell(one, other)) == 3
    one.put("key-1", b"2")
    assert tell(one, other) == [Change(0, "key-1", b"2")]


# On the wire


def test_what_is_said_survives_the_wire():
    one, other = pair()
    one.put("a", b"\x00\xff")
    one.put("b", None)
    digest = decode_digest(encode(other.digest()))
    assert digest == other.digest()
    deltas = one.newer(digest)
    assert decode_deltas(encode(deltas)) == deltas


@pytest.mark.parametrize(
    "deltas",
    [
        [Delta(-1, 0, 0, ())],
        [Delta(0, 2**62, 0, ())],
        [Delta(0, 0, 0, (Entry(1, "k" * 513, b""),))],
        [Delta(0, 0, 0, (Entry(1, "k", b"v" * (MOST_VALUE_BYTES + 1)),))],
        [Delta(0, 0, 0, (Entry(1, "k", b""),) * (MOST_ENTRIES + 1))],
        ["delta"],
        {},
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(deltas):
    with pytest.raises(BadFrame, match="not what a node says"):
        decode_deltas(encode(deltas))


@given(st.binary(max_size=40))
@settings(max_examples=100)
def test_bytes_that_mean_nothing_are_refused(data):
    for decode in (decode_deltas, decode_digest):
        try:
            decode(data)
        except BadFrame:
            continue
        assert data


# Whatever happens


@given(st.integers(0, 2**32), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_all_know_the_newest_of_everything_once_they_have_talked_enough(seed, nodes):
    """Random writes, exchanges cut at random and lost at random, restarts without memory; then quiet exchanges."""
    rng = np.random.default_rng(seed)
    maps = [Scuttlebutt(node, generation=1) for node in range(nodes)]
    truth = [{} for _ in range(nodes)]
    for step in range(120):
        one, other = (int(node) for node in rng.choice(nodes, 2, replace=False))
        what = rng.integers(10)
        if what < 4:
            key, value = f"key-{rng.integers(5)}", (b"%d" % step if rng.integers(3) else None)
            maps[one].put(key, value)
            truth[one][key] = value
        elif what == 4 and rng.integers(5) == 0:
            maps[one], truth[one] = Scuttlebutt(one, generation=step), {}
        elif what == 5 and rng.integers(5) == 0:
            maps[one].forget(other)
        else:
            digest = maps[other].digest()
            maps[one].object(digest)
            deltas = maps[one].newer(digest, most_entries=int(rng.integers(1, 8)))
            maps[other].merge([delta for delta in deltas if rng.integers(4)])
    for _ in range(2 * nodes):
        for one in range(nodes):
            for other in range(nodes):
                if one != other:
                    maps[one].object(maps[other].digest())
                    tell(maps[one], maps[other])
    for node in range(nodes):
        for writer in range(nodes):
            # A writer without a word may have started again, and then has nothing to tell that it did.
            if maps[writer].digest()[writer].version:
                found = {f"key-{key}": maps[node].get(writer, f"key-{key}") for key in range(5)}
                assert found == {key: truth[writer].get(key) for key in found}
