"""Sums without those who dropped out: exact from enough senders, and of no single one whatever a receiver says."""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ProtocolError
from node.privacy.keys import PairSecrets, Rounds
from node.privacy.masking import SCALE, SEED_WORDS, MaskedSum, mask, own_stream, pair_seed, quantise, unmask
from node.privacy.recovery import Contributions, Masks, masks, missing
from node.privacy.sharing import field_words

RUN = b"run"
RECEIVER = 99


def sum_of(senders=5, round=0, receiver=RECEIVER, first=0):
    return MaskedSum(RUN, round, receiver, tuple(range(first, first + senders)))


def secrets(me, seed=1):
    return PairSecrets.seeded(me, seed, RUN)


def models(count, dimension=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(dimension, generator=generator) for _ in range(count)]


@dataclass
class Round:
    """One sum, as far as all its senders have sent their parts."""

    total: MaskedSum
    secrets: dict = None
    books: dict = field(default_factory=dict)
    sealed: dict = field(default_factory=dict)

    def __post_init__(self):
        self.secrets = self.secrets or {me: secrets(me) for me in self.total.senders}
        for me in self.total.senders:
            self.books[me] = Contributions(me, Rounds())
            self.sealed[me] = self.books[me].share(self.total, self.secrets[me])

    def asked(self, me, alive):
        """What a receiver asks one of them: the sealed shares of all whom it names."""
        place = self.total.senders.index(me)
        return [self.sealed[peer][place] for peer in alive]

    def open(self, me, alive):
        return self.books[me].open(self.total.receiver, self.total.digest, alive, self.asked(me, alive))

    def part(self, me, model):
        return mask(model, self.total, self.secrets[me], recoverable=True)


def unmasked(parts, found):
    return unmask(parts, map(bytes.fromhex, found.added), map(bytes.fromhex, found.removed))


def plain(vectors, senders):
    """The sum of quantised vectors: exact."""
    words = sum(quantise(vector, senders) for vector in vectors)
    return torch.from_numpy((words.view(np.int32) / SCALE).astype(np.float32))


# What comes out


@given(st.integers(3, 9), st.integers(0, 2**31), st.data())
@settings(max_examples=40, deadline=None)
def test_any_dropouts_up_to_the_threshold_leave_the_exact_sum_of_the_others(senders, seed, data):
    """Some go before their part has come, others after it, and before they open the sum."""
    round, vectors = Round(sum_of(senders)), models(senders, seed=seed)
    most = senders - round.total.threshold
    dropped = data.draw(st.sets(st.integers(0, senders - 1), max_size=most))
    silent = data.draw(st.sets(st.integers(0, senders - 1), max_size=most - len(dropped)))
    alive = tuple(sender for sender in range(senders) if sender not in dropped)
    openings = {sender: round.open(sender, alive) for sender in alive if sender not in silent}
    found = masks(round.total, alive, openings)
    parts = [round.part(sender, vectors[sender]) for sender in alive]
    assert torch.equal(unmasked(parts, found), plain([vectors[sender] for sender in alive], senders))


@given(st.integers(3, 9), st.data())
@settings(max_examples=20, deadline=None)
def test_below_the_threshold_nothing_is_opened(senders, data):
    round = Round(sum_of(senders))
    few = data.draw(st.integers(1, round.total.threshold - 1))
    alive = tuple(sorted(data.draw(st.permutations(range(senders)))[:few]))
    for sender in alive:
        with pytest.raises(ProtocolError, match=f"allowed are {round.total.threshold} of them or more, sorted"):
            round.open(sender, alive)
    everybody = tuple(range(senders))
    assert masks(round.total, everybody, {sender: round.open(sender, everybody) for sender in alive}) is None


def test_keys_that_were_exchanged_open_as_well():
    private = [X25519PrivateKey.from_private_bytes(bytes([i + 1] * 32)) for i in range(4)]
    public = {i: key.public_key().public_bytes_raw() for i, key in enumerate(private)}
    ends = {i: PairSecrets.exchanged(i, key.private_bytes_raw(), public, RUN) for i, key in enumerate(private)}
    round, vectors, alive = Round(sum_of(4), ends), models(4), (0, 2, 3)
    found = masks(round.total, alive, {sender: round.open(sender, alive) for sender in alive})
    parts = [round.part(sender, vectors[sender]) for sender in alive]
    assert torch.equal(unmasked(parts, found), plain([vectors[sender] for sender in alive], 4))


def test_it_does_not_matter_who_opens():
    round, alive = Round(sum_of(7)), (0, 1, 2, 4, 5, 6)
    openings = {sender: round.open(sender, alive) for sender in alive}
    assert round.total.threshold == 5
    found = {masks(round.total, alive, {i: openings[i] for i in five}) for five in combinations(alive, 5)}
    assert len(found) == 1
    assert masks(round.total, alive, openings) in found


def test_openings_of_no_use_do_not_count():
    round, alive = Round(sum_of(4)), (0, 1, 3)
    openings = {sender: round.open(sender, alive) for sender in alive}
    good = masks(round.total, alive, openings)
    assert isinstance(good, Masks)
    assert masks(round.total, alive, {**openings, 2: openings[1], 77: b""}) == good  # of strangers to the sum
    for bad in (b"", openings[3][:-1], openings[3] + bytes(4)):
        assert masks(round.total, alive, {**openings, 3: bad}) is None
    assert masks(round.total, alive, {**openings, 3: bytes(len(openings[3]))}) != good


def test_whoever_lies_in_an_opening_makes_noise_of_the_sum():
    round, vectors, alive = Round(sum_of(4)), models(4, 2000), (0, 1, 2)
    openings = {sender: round.open(sender, alive) for sender in alive}
    openings[1] = openings[1][:-1] + bytes([openings[1][-1] ^ 1])
    parts = [round.part(sender, vectors[sender]) for sender in alive]
    assert float(unmasked(parts, masks(round.total, alive, openings)).abs().mean()) > 500


@pytest.mark.parametrize(("senders", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (9, 7), (10, 7), (99, 67)])
def test_the_threshold_is_more_than_two_thirds(senders, threshold):
    assert sum_of(senders).threshold == threshold
    friends = senders // 3
    assert 2 * threshold > senders + friends


# What is refused


def test_a_sum_is_opened_once():
    round = Round(sum_of())
    round.open(0, (0, 1, 2, 3))
    for alive in ((0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 2, 3, 4)):
        with pytest.raises(ProtocolError, match="no sum of node 99 to open: each is opened once, and before the next"):
            round.open(0, alive)


@pytest.mark.parametrize(
    "alive", [(), (0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 7), (3, 2, 1, 0), (0, 1, 2, 3, 3), (0, 1, 2, 3, 4, 5)]
)
def test_sets_that_make_no_sense_are_refused_and_use_nothing_up(alive):
    round = Round(sum_of())
    with pytest.raises(ProtocolError, match=r"of the senders \(0, 1, 2, 3, 4\); allowed are 4 of them or more, sorted"):
        round.books[0].open(RECEIVER, round.total.digest, alive, [b""] * len(alive))
    assert round.open(0, (0, 1, 2, 3))


def test_nobody_opens_a_sum_that_it_is_not_in():
    with pytest.raises(ProtocolError, match="node 4 is said to be missing from the sum that it is to open"):
        Round(sum_of()).open(4, (0, 1, 2, 3))


def test_shares_of_another_size_are_refused():
    round, alive = Round(sum_of()), (0, 1, 2, 3)
    good = round.asked(0, alive)
    for bad in (good[:-1], [*good, b""], [*good[:-1], b""], [*good[:-1], good[-1] + b"0"]):
        with pytest.raises(ProtocolError, match="shares for 4 senders; allowed are as many, of 100 bytes each"):
            round.books[0].open(RECEIVER, round.total.digest, alive, bad)
    assert round.open(0, alive)


def test_only_the_last_sum_of_a_receiver_is_opened():
    round = Round(sum_of())
    round.books[0].share(sum_of(receiver=8), secrets(0))
    later = sum_of(round=1)
    round.books[0].share(later, secrets(0))
    for receiver, digest in ((RECEIVER, round.total.digest), (8, later.digest), (7, later.digest), (8, bytes(16))):
        with pytest.raises(ProtocolError, match=f"no sum of node {receiver} to open"):
            round.books[0].open(receiver, digest, (0, 1, 2, 3), [b""] * 4)


def test_a_sum_of_single_masks_is_never_opened():
    book, total = Contributions(0, Rounds()), sum_of()
    book.begin(total)
    with pytest.raises(ProtocolError, match="no sum of node 99 to open"):
        book.open(RECEIVER, total.digest, total.senders, [b""] * 5)


def test_nobody_takes_part_in_two_sums_of_one_round_and_receiver():
    book = Contributions(0, Rounds())
    book.share(sum_of(), secrets(0))
    for take_part in (book.begin, lambda total: book.share(total, secrets(0))):
        for total in (sum_of(), sum_of(4)):
            with pytest.raises(ProtocolError, match="round 0 for node 99 comes after round 0"):
                take_part(total)
    book.begin(sum_of(round=1))
    book.begin(sum_of(receiver=8))
    with pytest.raises(ProtocolError, match=r"node 7 is not among the senders \(0, 1, 2, 3, 4\)"):
        Contributions(7, Rounds()).begin(sum_of())


def test_a_sender_that_was_restarted_opens_nothing_of_its_earlier_life():
    """It has another key and an empty book: the others, who are enough, open the sum without it."""
    round, alive = Round(sum_of(4)), (0, 1, 2, 3)
    with pytest.raises(ProtocolError, match="no sum of node 99 to open"):
        Contributions(3, Rounds()).open(RECEIVER, round.total.digest, alive, round.asked(3, alive))
    openings = {sender: round.open(sender, alive) for sender in (0, 1, 2)}
    assert masks(round.total, alive, openings) is not None


# What a receiver learns


def seeds(opening, named, dead):
    return np.frombuffer(opening, "<u4").reshape(len(named), 1 + len(dead), SEED_WORDS)


def test_an_opening_holds_shares_of_what_it_should_and_of_nothing_else():
    """Own seeds of the living, common seeds with the dead; neither the own seed of a dead one, nor a living pair's."""
    round, alive = Round(sum_of(4)), (0, 1, 3)
    assert missing(round.total, alive) == (2,)
    openings = {sender: round.open(sender, alive) for sender in alive}
    assert {len(opening) for opening in openings.values()} == {4 * 3 * 2 * SEED_WORDS}
    found = masks(round.total, alive, openings)
    own = {i: field_words(own_stream(round.total, secrets(i)), SEED_WORDS) for i in range(4)}
    pairs = {(i, j): pair_seed(round.total, j, secrets(i)) for i in range(4) for j in range(4) if i != j}
    key = {name: round.total.key(seed).hex() for name, seed in {**own, **pairs}.items()}
    assert set(found.removed) == {key[0], key[1], key[3], key[0, 2], key[1, 2]}
    assert set(found.added) == {key[3, 2]}


def test_a_part_that_comes_late_stays_noise():
    """All its common masks are known by then; its own one is nobody's."""
    round, alive = Round(sum_of(4)), (0, 1, 3)
    vectors = models(4, 2000)
    found = masks(round.total, alive, {sender: round.open(sender, alive) for sender in alive})
    late = round.part(2, vectors[2])
    parts = [round.part(sender, vectors[sender]) for sender in alive]
    assert float(unmasked([*parts, late], found).abs().mean()) > 500
    common = {2: [round.total.key(pair_seed(round.total, other, secrets(2))) for other in alive]}
    alone = unmask([late], added=common[2][:2], removed=common[2][2:])
    assert float(alone.abs().mean()) > 500


def test_shares_are_sealed_for_one_sender_in_one_direction_and_sum():
    round, alive = Round(sum_of(4)), (0, 1, 2, 3)
    good = round.open(0, alive)
    names = [bytes(row) for sealed in round.sealed.values() for row in sealed if row]
    assert len(set(names)) == 12
    for other in (Round(sum_of(4, round=1)), Round(sum_of(4), {me: secrets(me, 2) for me in range(4)})):
        assert not np.intersect1d(*(np.frombuffer(which.sealed[1][0], "<u4") for which in (round, other))).size
    swapped = Round(sum_of(4))
    row = swapped.sealed
    row[1], row[2] = (row[2][0], *row[1][1:]), (row[1][0], *row[2][1:])  # node 0 gets them under each other's name
    one, other = (seeds(opening, alive, ()) for opening in (good, swapped.open(0, alive)))
    assert np.array_equal(one[[0, 3]], other[[0, 3]])
    assert not np.intersect1d(one[1:3], other[1:3]).size


def test_senders_that_were_told_of_other_senders_read_nothing_in_each_other_s_shares():
    """Were it otherwise, a place in one list would be another's place in the other: a living pair's seed, opened."""
    told, other = Round(sum_of(4)), Round(MaskedSum(RUN, 0, RECEIVER, (0, 1, 2, 7)))
    mixed = [other.sealed[peer][0] if peer == 1 else told.sealed[peer][0] for peer in (0, 1, 2)]
    opening = told.books[0].open(RECEIVER, told.total.digest, (0, 1, 2), mixed)
    right = Round(sum_of(4)).open(0, (0, 1, 2))
    one, same = (seeds(each, (0, 1, 2), (3,)) for each in (opening, right))
    assert np.array_equal(one[[0, 2]], same[[0, 2]])
    assert not np.intersect1d(one[1], same[1]).size


PRIME = 2**31 - 1


def rank(rows):
    """Of a matrix over the integers modulo a prime: exact, unlike in floating-point numbers."""
    rows, found = [list(row) for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column] % PRIME), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, PRIME)
        rows[found] = [value * inverse % PRIME for value in rows[found]]
        for i, row in enumerate(rows):
            if i != found and row[column] % PRIME:
                rows[i] = [(a - row[column] * b) % PRIME for a, b in zip(row, rows[found], strict=True)]
        found += 1
    return found


def view(senders, friends, told):
    """All that a receiver and its friends can compute with, as linear forms in what the honest senders keep.

    They have all parts, late ones too, everything of the friends, and of every seed that the honest ones have opened
    enough shares of, the mask. ``told``: whom each honest sender was told to be there.
    """
    honest = [node for node in range(senders) if node not in friends]
    names = [*honest, *[("own", i) for i in honest], *[("common", *pair) for pair in combinations(honest, 2)]]
    column = {name: place for place, name in enumerate(names)}

    def form(**terms):
        row = [0] * len(names)
        for name, factor in terms["of"]:
            row[column[name]] = factor
        return row

    def pair(i, j):
        return "common", min(i, j), max(i, j)

    rows = [
        form(of=[(i, 1), (("own", i), 1), *[(pair(i, j), 1 if i < j else -1) for j in honest if j != i]])
        for i in honest
    ]
    needed = sum_of(senders).threshold - len(friends)
    for i in honest:
        if sum(i in alive for alive in told.values()) >= needed:
            rows.append(form(of=[(("own", i), 1)]))
        for j in honest:
            if j != i and sum(i in alive and j not in alive for alive in told.values()) >= needed:
                rows.append(form(of=[(pair(i, j), 1)]))
    return honest, rows


def exposed(senders, friends, told):
    """The honest senders whose value follows from the view: a form in it, or not."""
    honest, rows = view(senders, friends, told)
    known = rank(rows)
    return [
        i for place, i in enumerate(honest) if rank([*rows, [int(c == place) for c in range(len(rows[0]))]]) == known
    ]


def may_tell(senders, node):
    """All sets that a sender answers to."""
    least = sum_of(senders).threshold
    return [
        alive for count in range(least, senders + 1) for alive in combinations(range(senders), count) if node in alive
    ]


@given(st.integers(4, 8), st.data())
@settings(max_examples=150, deadline=None)
def test_a_lying_receiver_with_a_third_of_the_senders_exposes_nobody(senders, data):
    """It tells every honest sender, of those it asks, another story; they answer all that is allowed, once each."""
    friends = set(range(data.draw(st.integers(0, senders // 3))))
    told = {
        node: data.draw(st.sampled_from(may_tell(senders, node)))
        for node in range(len(friends), senders)
        if data.draw(st.integers(0, 3))
    }
    assert exposed(senders, friends, told) == []


def test_no_story_of_all_exposes_a_sender_of_four():
    """Every way to lie to three honest senders, or four, that there is: with a friend among them, and without."""
    for friends in (set(), {0}):
        honest = [node for node in range(4) if node not in friends]
        stories = [[None, *may_tell(4, node)] for node in honest]
        for told in np.ndindex(*map(len, stories)):
            chosen = {node: stories[i][told[i]] for i, node in enumerate(honest) if told[i]}
            assert exposed(4, friends, chosen) == []


def test_the_algebra_finds_what_is_exposed():
    """Where friends of the receiver are all other senders, or as many as the threshold, or more than a third."""
    assert exposed(3, {0, 1}, {2: (0, 1, 2)}) == [2]
    assert exposed(4, set(), dict.fromkeys(range(4), (0, 1, 2, 3))) == []
    assert exposed(7, set(range(5)), {}) == [5, 6]  # the threshold itself: they need nobody
    assert exposed(7, set(range(4)), {}) == []
    lies = {2: (0, 1, 2), 3: (0, 1, 3)}
    assert exposed(4, {0, 1}, lies) == [2, 3]
