"""The event stream and its hash."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.tape import Event, EventKind, Tape, events_of, first_difference

EVENTS = st.lists(
    st.builds(
        Event,
        st.floats(0, 1e9),
        st.sampled_from(EventKind),
        st.integers(0, 10**6),
        st.integers(-1, 10**6),
        st.integers(0, 2**50),
    )
)


def taped(events):
    blocks = []
    tape = Tape(blocks.append)
    for event in events:
        tape.note(*event)
    return tape.digest(), b"".join(blocks)


@given(EVENTS)
def test_events_come_back_as_they_were(events):
    _, data = taped(events)
    assert list(events_of(data)) == events


@given(EVENTS, EVENTS)
def test_hashes_are_equal_exactly_where_events_are(one, other):
    assert taped(one)[0] == taped(one)[0]
    assert (taped(one)[0] == taped(other)[0]) == (one == other)


def test_the_hash_does_not_depend_on_blocks_or_on_looking_at_it():
    events = [Event(float(i), EventKind.DELIVERED, i, i + 1, 10) for i in range(2500)]
    tape = Tape()
    for event in events:
        tape.note(*event)
        if event.node % 700 == 0:
            tape.digest()
    assert tape.digest() == tape.digest() == taped(events)[0]


def test_taking_without_looking_is_the_same_as_noting():
    noted, taken = Tape(), Tape()
    for i in range(3000):
        noted.note(i, EventKind.TRAINED, 1, 2, 3)
        taken.take((i, EventKind.TRAINED, 1, 2, 3))
    assert taken.events == noted.events == 3000
    assert taken.digest() == noted.digest()


def test_events_are_counted_before_and_after_they_are_written():
    blocks = []
    tape = Tape(blocks.append)
    for i in range(1500):
        tape.note(i, EventKind.ENDED, 0)
    assert (tape.events, len(blocks)) == (1500, 1)
    tape.digest()
    assert (tape.events, len(blocks)) == (1500, 2)


def test_an_empty_tape():
    digest, data = taped([])
    assert len(digest) == 32
    assert data == b""
    assert list(events_of(data)) == []


def test_an_event_as_a_line():
    line = Event(1.5, EventKind.DELIVERED, 3, 4, 100).json()
    assert json.loads(line) == {"time_s": 1.5, "kind": "delivered", "node": 3, "peer": 4, "size_bytes": 100}
    assert "\n" not in line


@given(EVENTS)
def test_equal_tapes_do_not_differ(events):
    assert first_difference(taped(events)[1], taped(events)[1]) is None


@given(EVENTS.filter(bool), st.data())
def test_the_first_difference_is_found(events, data):
    at = data.draw(st.integers(0, len(events) - 1))
    changed = events.copy()
    changed[at] = events[at]._replace(size_bytes=events[at].size_bytes + 1)
    changed[at + 1 :] = data.draw(EVENTS)
    assert first_difference(taped(events)[1], taped(changed)[1]) == (at, events[at], changed[at])


@pytest.mark.parametrize(("one", "other"), [(3, 5), (5, 3), (0, 1)])
def test_a_tape_that_ends_early_differs_where_it_ends(one, other):
    events = [Event(float(i), EventKind.TRAINED, i, -1, 0) for i in range(5)]
    number, mine, theirs = first_difference(taped(events[:one])[1], taped(events[:other])[1])
    assert number == min(one, other)
    assert (mine is None) == (one < other)
    assert (theirs is None) == (other < one)
