"""What a member believes: words, accusations and their order, comparisons, bounds, and bytes on the wire."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership_members import Keyed, alive, dead, left, member, of, sent, signed, suspect, tell
from node.errors import BadFrame, FrameTooLarge
from node.membership import (
    PIGGYBACK_BYTES,
    Ack,
    Changed,
    Differences,
    Gossip,
    Ping,
    State,
    Statement,
    Summary,
    Usurped,
    Warn,
    decode,
    encode,
)
from node.membership.statement import MOST_JUMP
from node.membership.vocabulary import EXCHANGE_BYTES


def hear(swim, *statements, now=1.0, sender=9):
    return tell(swim, sender, Gossip(statements), now)


def state(swim, peer):
    return {sighting.peer: sighting.state for sighting in swim.known()}.get(peer)


# The order of statements (SWIM, section 4.2)


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ((alive(1, 5),), State.ALIVE),
        ((suspect(1, 2, 5),), State.SUSPECT),
        ((dead(1, 2, 5),), State.DEAD),
        ((left(1, 5),), State.LEFT),
        ((suspect(1, 2, 5), alive(1, 6)), State.ALIVE),
        ((suspect(1, 2, 5), alive(1, 5)), State.SUSPECT),
        ((suspect(1, 2, 4),), State.ALIVE),
        ((dead(1, 2, 4),), State.ALIVE),
        ((dead(1, 2, 5), suspect(1, 3, 5)), State.DEAD),
        ((dead(1, 2, 5), alive(1, 5)), State.DEAD),
        ((dead(1, 2, 5), alive(1, 6)), State.ALIVE),
        ((dead(1, 2, 5), left(1, 5)), State.LEFT),
        ((left(1, 6), dead(1, 2, 6)), State.LEFT),
        ((left(1, 6), suspect(1, 2, 6)), State.LEFT),
        ((left(1, 6), alive(1, 6)), State.LEFT),
        ((left(1, 6), alive(1, 7)), State.ALIVE),
        ((suspect(1, 2, 9),), State.ALIVE),
        ((dead(1, 2, 9),), State.ALIVE),
    ],
)
def test_what_is_believed_of_a_peer_whose_word_is_its_fifth(said, believed):
    swim, _ = member()
    hear(swim, alive(1, 5))
    hear(swim, *said)
    assert state(swim, 1) is believed


def test_accusations_of_who_is_unknown_mean_nothing():
    swim, _ = member()
    assert of(hear(swim, suspect(7, 2), dead(7, 2), left(7)), Changed) == []
    assert swim.known() == ()


STATEMENTS = [
    *[alive(1, incarnation) for incarnation in (1, 2, 3)],
    *[left(1, incarnation) for incarnation in (1, 2)],
    *[suspect(1, author, incarnation) for author in (2, 3) for incarnation in (1, 2, 3)],
    *[dead(1, author, incarnation) for author in (2, 3) for incarnation in (1, 2, 3)],
]


@given(st.permutations(STATEMENTS[:-2]), st.permutations(STATEMENTS[:-2]))
def test_two_that_have_heard_the_same_often_enough_believe_the_same_in_whatever_order(one, other):
    first, _ = member(0)
    second, _ = member(0)
    for swim, order in ((first, one), (second, other)):
        for _ in range(4):
            hear(swim, *order)
    assert state(first, 1) is state(second, 1)
    assert first.peers() == second.peers()
    assert first.statements() == second.statements()


@given(st.lists(st.sampled_from(STATEMENTS), max_size=30))
def test_what_is_believed_only_ever_grows(said):
    swim, _ = member()
    before = (-1, -1)
    for statement in said:
        actions = hear(swim, statement)
        (now,) = [(seen.incarnation, seen.state) for seen in swim.known()] or [(-1, -1)]
        assert now >= before
        assert (1 in swim.peers()) == (now != (-1, -1) and now[1] <= State.SUSPECT)
        assert bool(of(actions, Changed)) == (now != before)
        before = now


# Signatures


@pytest.mark.parametrize("statement", [alive(1), left(1, 4), suspect(2, 3), dead(2, 3)])
@pytest.mark.parametrize("field", ["incarnation", "author", "record", "signature", "state"])
def test_what_was_altered_is_not_believed(statement, field):
    swim, _ = member(others=(2, 1))
    hear(swim, alive(1, 2), alive(2, 1))
    other = {
        "incarnation": statement.incarnation + 1,
        "author": 4,
        "record": b"other",
        "signature": bytes(32),
        "state": State.ALIVE if statement.state is not State.ALIVE else State.LEFT,
    }[field]
    before = swim.known()
    assert hear(swim, alive(1, 3)._replace(signature=b""), statement._replace(**{field: other})) == []
    assert swim.known() == before
    assert swim.refused >= 1


def test_a_member_cannot_speak_for_another():
    swim, _ = member(others=(1,))
    forged = alive(1, 9)._replace(signature=Keyed(2).sign(alive(1, 9).signed_bytes))
    hear(swim, forged)
    assert swim.sighting(1).incarnation == 1
    assert swim.refused == 1


def test_signatures_are_checked_only_where_something_would_change():
    swim, _ = member(others=(1, 2, 3))
    checked = swim._signatures.verified
    checked.clear()
    hear(swim, alive(1), alive(2), suspect(1, 2, 7), dead(8, 1), suspect(1, 2, 0))
    assert checked == []
    hear(swim, suspect(1, 2), suspect(1, 2))
    assert checked == [suspect(1, 2)]


def test_a_signature_is_over_every_field():
    word = alive(1)
    changed = [
        word._replace(state=State.LEFT),
        word._replace(peer=2),
        word._replace(incarnation=2),
        word._replace(author=2),
        word._replace(record=b"s"),
    ]
    assert len({each.signed_bytes for each in [word, *changed]}) == 6


# Incarnations


def test_a_jump_beyond_the_bound_is_refused_but_a_first_word_may_be_any():
    swim, _ = member()
    hear(swim, alive(1, 10), alive(2, 2**61))
    hear(swim, alive(1, 11 + MOST_JUMP))
    assert [sighting.incarnation for sighting in swim.known()] == [10, 2**61]
    hear(swim, alive(1, 10 + MOST_JUMP))
    assert swim.sighting(1).incarnation == 10 + MOST_JUMP


def test_a_word_of_this_nodes_own_that_it_has_not_said_stops_it():
    swim, _ = member(0, kept=4)
    assert of(hear(swim, alive(0, 5, b"r")), Usurped) == []
    assert of(hear(swim, alive(0, 6)), Usurped) == [Usurped(6)]
    assert of(hear(swim, left(0, 5)), Usurped) == [Usurped(5)]
    forged = alive(0, 7)._replace(signature=bytes(32))
    assert of(hear(swim, forged), Usurped) == []


# Bounds


def test_invented_peers_take_no_memory():
    swim, _ = member(most_peers=50)
    warned = []
    for first in range(100, 5000, 50):
        warned += of(hear(swim, *[alive(peer) for peer in range(first, first + 50)]), Warn)
    assert len(swim.known()) == 49
    assert len(warned) == 1
    assert "no more are taken in" in warned[0].line
    assert len(swim._rumours) <= 50


def test_the_longest_gone_makes_room():
    swim, _ = member(most_peers=4)
    hear(swim, alive(1), alive(2), alive(3), now=1.0)
    hear(swim, dead(2, 1), now=2.0)
    hear(swim, dead(3, 1), now=3.0)
    actions = hear(swim, alive(4), now=4.0)
    assert of(actions, Changed) == [Changed(2, None), Changed(4, State.ALIVE)]
    assert [sighting.peer for sighting in swim.known()] == [1, 3, 4]


@given(st.integers(0, 60), st.integers(0, 1024))
def test_piggyback_fits_its_budget(count, length):
    swim, _ = member()
    for peer in range(1, count + 1):
        hear(swim, alive(peer, record=bytes(length)))
    ((_, ack),) = sent(tell(swim, 1, Ping(1), 1.0), Ack)
    assert len(encode(ack)) <= PIGGYBACK_BYTES + 32
    if count:
        assert ack.updates


# Comparisons


def agree(one, other, now=1.0):
    """Pass messages of a comparison between two members until none is left; how many and how large they were."""
    mail = [(one, other, message) for to, message in sent(start_comparison(one, other.me)) if to == other.me]
    sizes = []
    while mail:
        sender, receiver, message = mail.pop(0)
        sizes.append(len(encode(message)))
        for to, answer in sent(tell(receiver, sender.me, message, now)):
            if to == sender.me:
                mail.append((receiver, sender, answer))
    return sizes


def start_comparison(swim, peer):
    swim._actions = []
    swim._compare_with(peer)
    return swim._actions


def test_equal_views_compare_in_one_message_whatever_their_size():
    sizes = []
    for count in (10, 100, 1000):
        one, _ = member(0, range(1, count))
        other, _ = member(1, [0, *range(2, count)])
        (size,) = agree(one, other)
        sizes.append(size)
    assert max(sizes) < 64 * 9 + 100


def test_a_comparison_tells_both_sides_all_that_only_one_knew():
    one, _ = member(0, [1, *range(10, 200)])
    other, _ = member(1, [0, *range(100, 300)])
    hear(one, suspect(150, 160), suspect(150, 161), dead(151, 150), left(152), now=0.5)
    hear(other, alive(153, 4), now=0.5)
    agree(one, other)
    assert one.peers() == (1, *sorted(set(range(10, 300)) - {151, 152}))
    assert other.peers() == (0, *sorted(set(range(10, 300)) - {151, 152}))
    known = [{seen.peer: (seen.state, seen.incarnation) for seen in swim.known()} for swim in (one, other)]
    assert all(known[0][peer] == known[1][peer] for peer in range(10, 300))


def test_a_newcomer_hears_of_everybody_in_pages():
    old, _ = member(0, range(1, 2000))
    new, _ = member(5000, seeds=(0,))
    sizes = agree(new, old)
    assert len(new.peers()) == 2000
    assert 5000 in old.peers()
    assert max(sizes) <= EXCHANGE_BYTES
    assert len(sizes) < 30
    assert not [statement for statement in new._rumours.take(10_000, 9) if statement.peer != 5000]


def test_remembering_the_dead_or_not_makes_no_difference_worth_a_message():
    one, _ = member(0, range(1, 20))
    other, _ = member(1, [0, *range(2, 20)])
    hear(one, dead(7, 8))
    hear(other, dead(7, 8))
    other._view.forget(7)
    assert len(agree(one, other)) == 1


def test_a_bucket_hash_differs_by_peer_and_by_incarnation():
    summaries = []
    for words in ([alive(3)], [alive(67)], [alive(3, 2)], [alive(3), alive(67)], []):
        swim, _ = member(1)
        hear(swim, *words)
        summaries.append(swim._view.hashes())
    assert len(set(summaries)) == 5
    hear(swim, alive(3), dead(3, 4))
    assert swim._view.hashes() == summaries[-1]


# The wire


@given(
    st.builds(
        Statement,
        st.sampled_from(State),
        st.integers(0, 2**62 - 1),
        st.integers(0, 2**62 - 1),
        st.integers(0, 2**62 - 1),
        st.binary(max_size=1024),
        st.binary(max_size=128),
    ),
    st.integers(0, 2**62 - 1),
)
def test_messages_survive_the_wire_and_statements_are_no_longer_than_they_say(statement, seq):
    frames = [
        Ping(seq, (statement,)),
        Gossip((statement,) * 3),
        Summary((0, *range(2**64 - 63, 2**64))),
        Differences((0, 63), (statement,), True, False),
    ]
    for message in frames:
        assert decode(encode(message)) == message
    assert len(encode(Ping(seq, (statement, statement)))) - len(encode(Ping(seq, (statement,)))) <= statement.size_bytes


def decoded(frame):
    """The message in a frame, or None where it is refused as it should be."""
    try:
        return decode(frame)
    except BadFrame:
        return None


def test_a_refusal_quotes_no_control_characters_of_the_sender():
    with pytest.raises(BadFrame) as refused:
        decode(b"\x94\xacping-p\x16request\x07\x02\xcdA\xf4")
    assert str(refused.value).isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_one_error(frame):
    message = decoded(frame)
    assert message is None or decode(encode(message)) == message


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_frame_is_a_message_or_one_error(at, byte):
    frame = bytearray(encode(Differences((1, 2), (alive(1), suspect(1, 2)), True, False)))
    frame[at % len(frame)] = byte
    message = decoded(bytes(frame))
    assert message is None or decode(encode(message)) == message


def test_the_reason_is_in_the_error():
    with pytest.raises(BadFrame, match=r"membership: no message: .*utf-8"):
        decode(b"\x91\xa1\x80")


@pytest.mark.parametrize(
    "message",
    [
        Ping(-1),
        Ping(2**62),
        Ping(1, (alive(1),) * 65),
        Gossip((alive(-1),)),
        Gossip((alive(1, record=bytes(1025)),)),
        Gossip((signed(State.ALIVE, 1, 2**62),)),
        Gossip((alive(1)._replace(signature=bytes(129)),)),
        Gossip((alive(1)._replace(state=7),)),
        Summary((0,) * 63),
        Differences((64,), (), True, True),
        Ack(1, -1),
        Ack(1, 2**31),
    ],
)
def test_what_is_out_of_bounds_is_no_message(message):
    with pytest.raises(BadFrame):
        decode(encode(message))


def test_a_frame_longer_than_any_message_is_refused_unread():
    with pytest.raises(FrameTooLarge, match="allowed: 262144"):
        decode(bytes(2**18 + 1))


def test_messages_cannot_be_changed():
    with pytest.raises(AttributeError):
        Ping(1).seq = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Changed(1, None).peer = 2
