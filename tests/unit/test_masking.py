"""Secure aggregation: the sum comes out, nothing else does, and no mask is used or revealed twice."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import BadSignature, ComputeError, ProtocolError
from node.op import Key, Spec, Task
from node.privacy.keys import PairSecrets, Rounds
from node.privacy.masking import (
    FARTHEST,
    LIMIT,
    SCALE,
    Contributions,
    Gathering,
    MaskedSum,
    Survivors,
    correction,
    mask,
    masked,
    plausible,
    quantise,
    unmask,
    unmasked,
)

RUN = b"run"
RECEIVER = 99
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = SIGNING.public_key().public_bytes_raw()


def sum_of(senders=5, round=0, receiver=RECEIVER):
    """A sum of the nodes from 0 on."""
    return MaskedSum(RUN, round, receiver, tuple(range(senders)))


def secrets(me, seed=1):
    return PairSecrets.seeded(me, seed, RUN)


def models(count, dimension=50, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(dimension, generator=generator) for _ in range(count)]


def plain(vectors):
    return sum(vector.double() for vector in vectors)


def words(tensor):
    return tensor.numpy().view(np.uint32)


# The sum


@given(st.integers(3, 9), st.integers(0, 60), st.floats(1e-6, 30.0), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_sum_is_the_plain_one_up_to_half_a_step_each(senders, dimension, scale, seed):
    vectors = models(senders, dimension, seed, scale)
    total = sum_of(senders)
    found = unmask([mask(vector, total, secrets(me)) for me, vector in enumerate(vectors)])
    bound = senders / 2 / SCALE + plain(vectors).abs().numpy() * 2.0**-24
    assert found.dtype == torch.float32
    assert (np.abs(found.double().numpy() - plain(vectors).numpy()) <= bound * (1 + 1e-9)).all()


def test_the_sum_does_not_depend_on_the_order_of_arrival():
    values = [mask(vector, sum_of(), secrets(me)) for me, vector in enumerate(models(5))]
    assert torch.equal(unmask(values), unmask(values[::-1]))


def test_keys_that_were_exchanged_cancel_as_well():
    private = [X25519PrivateKey.from_private_bytes(bytes([i + 1] * 32)) for i in range(3)]
    public = {i: key.public_key().public_bytes_raw() for i, key in enumerate(private)}
    ends = [PairSecrets.exchanged(i, key.private_bytes_raw(), public, RUN) for i, key in enumerate(private)]
    vectors = models(3)
    found = unmask([mask(vector, sum_of(3), end) for vector, end in zip(vectors, ends, strict=True)])
    torch.testing.assert_close(found.double(), plain(vectors), rtol=1e-6, atol=3 / SCALE)


@pytest.mark.parametrize("missing", range(4))
def test_without_any_one_value_the_sum_is_noise(missing):
    vectors = models(4, 2000)
    values = [mask(vector, sum_of(4), secrets(me)) for me, vector in enumerate(vectors) if me != missing]
    assert float(unmask(values).abs().mean()) > LIMIT / 4  # uniform over -LIMIT to LIMIT: its mean size is half of it


def test_a_masked_value_says_nothing_about_the_model():
    # Two chances in a thousand million either way: a mean of uniform words is normal.
    nothing, something = (
        words(mask(model, sum_of(), secrets(0))) / 2**32 for model in (torch.zeros(10_000), torch.full((10_000,), 7.0))
    )
    for seen in (nothing, something):
        assert abs(seen.mean() - 0.5) < 6 / np.sqrt(12 * 10_000)
        assert abs(np.mean((seen[1:] - 0.5) * (seen[:-1] - 0.5))) < 6 / 12 / np.sqrt(10_000)


def test_every_round_receiver_and_run_has_masks_of_its_own():
    model = torch.zeros(20)
    sums = [sum_of(), sum_of(round=1), sum_of(receiver=8), sum_of(4)]
    seen = [tuple(words(mask(model, total, secrets(0)))) for total in sums]
    seen.append(tuple(words(mask(model, sum_of(), secrets(0, seed=2)))))
    assert len(set(seen)) == len(seen)


# Fixed-point numbers


@given(st.floats(-600, 600))
def test_a_number_is_off_by_half_a_step(value):
    (word,) = quantise(torch.tensor([value], dtype=torch.float64), 3).view(np.int32)
    assert abs(word / SCALE - value) <= 0.5 / SCALE


def test_negative_numbers_are_in_twos_complement():
    found = quantise(torch.tensor([1.0, -1.0, -1 / SCALE, 0.4 / SCALE]), 3)
    assert found.tolist() == [SCALE, 2**32 - SCALE, 2**32 - 1, 0]


@pytest.mark.parametrize("senders", [3, 4, 7, 64])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_that_are_allowed_do_not_overflow(senders, sign):
    largest = ((LIMIT * SCALE - 1) / senders - 1) / SCALE
    value = torch.tensor([sign * largest], dtype=torch.float64)
    found = unmask([mask(value, sum_of(senders), secrets(me)) for me in range(senders)])
    assert float(found) == pytest.approx(sign * largest * senders, abs=senders / SCALE + LIMIT * 2.0**-24)


@pytest.mark.parametrize("value", [LIMIT / 5, -LIMIT / 5, LIMIT / 5 - 0.5 / SCALE, float("nan"), float("inf"), -1e30])
def test_values_whose_sum_could_overflow_are_refused(value):
    with pytest.raises(ComputeError, match=r"secure aggregation: a value of .*, for a sum of 5 senders.*below 409.6"):
        quantise(torch.tensor([0.0, value], dtype=torch.float64), 5)


# Who takes part


@pytest.mark.parametrize("senders", [0, 1, 2])
def test_fewer_than_three_senders_are_refused(senders):
    with pytest.raises(ProtocolError, match=f"a masked sum of {senders} senders for node 99; at least 3 are needed"):
        sum_of(senders)


@pytest.mark.parametrize("senders", [(0, 2, 1), (0, 1, 1), (0, 1, RECEIVER)])
def test_senders_are_sorted_distinct_and_others(senders):
    with pytest.raises(ProtocolError, match="allowed are sorted, distinct nodes other than the receiver"):
        MaskedSum(RUN, 0, RECEIVER, senders)


def test_every_sum_has_a_digest_of_its_own():
    sums = [sum_of(), sum_of(4), sum_of(round=1), sum_of(receiver=8), MaskedSum(b"other", 0, RECEIVER, (0, 1, 2, 3, 4))]
    assert len({total.digest for total in sums}) == len(sums)
    assert {len(total.digest) for total in sums} == {16}
    assert sum_of().digest == sum_of().digest


def test_nobody_takes_part_in_two_sums_of_one_round_and_receiver():
    book = Contributions(0, Rounds())
    book.begin(sum_of())
    for total in (sum_of(), sum_of(4)):
        with pytest.raises(ProtocolError, match="round 0 for node 99 comes after round 0"):
            book.begin(total)
    book.begin(sum_of(round=1))
    book.begin(sum_of(receiver=8))


def test_only_senders_take_part():
    with pytest.raises(ProtocolError, match=r"node 7 is not among the senders \(0, 1, 2, 3, 4\)"):
        Contributions(7, Rounds()).begin(sum_of())


def test_a_gathering_counts_each_sender_once_and_in_time():
    total = sum_of(3)
    gathering = Gathering(total)
    assert gathering.heard(1, total.digest)
    assert not gathering.heard(1, total.digest)
    assert not gathering.heard(2, sum_of(4).digest)
    assert not gathering.heard(5, total.digest)
    assert gathering.missing == (0, 2)
    assert gathering.heard(0, total.digest)
    assert gathering.close() == (0, 1)
    assert not gathering.heard(2, total.digest)
    assert gathering.missing == (2,)


# Dropouts


def begun(senders=5):
    books = [Contributions(me, Rounds()) for me in range(senders)]
    for book in books:
        book.begin(sum_of(senders))
    return books


@given(st.integers(4, 8), st.data())
@settings(max_examples=25, deadline=None)
def test_survivors_sums_come_out_once_they_reveal_the_masks_of_the_dead(senders, data):
    alive = data.draw(st.sets(st.integers(0, senders - 1), min_size=3, max_size=senders - 1))
    total, vectors = sum_of(senders), models(senders)
    signed = Survivors.signed(total, tuple(alive), SIGNING.sign)
    values, corrections = [], []
    for me, book in enumerate(begun(senders)):
        if me in alive:
            dead = book.reveal(total, signed, PUBLIC)
            values.append(mask(vectors[me], total, secrets(me)))
            corrections.append(correction(total, dead, secrets(me), 50))
    found = unmask(values, corrections).double()
    torch.testing.assert_close(found, plain([vectors[i] for i in alive]), rtol=1e-6, atol=len(alive) / SCALE)
    assert float(unmask(values).abs().mean()) > LIMIT / 8


def test_masks_are_revealed_once():
    total = sum_of()
    book = begun()[0]
    for alive in ((0, 1, 2, 3), (0, 1, 2, 4)):
        signed = Survivors.signed(total, alive, SIGNING.sign)
        if alive == (0, 1, 2, 3):
            assert book.reveal(total, signed, PUBLIC) == (4,)
        else:
            with pytest.raises(ProtocolError, match="nothing to reveal for node 99 in round 0: once, and in time"):
                book.reveal(total, signed, PUBLIC)


def test_masks_are_revealed_neither_late_nor_of_sums_without_oneself():
    book = begun()[0]
    book.begin(sum_of(round=1))
    for total in (sum_of(), sum_of(round=2), sum_of(receiver=8), sum_of(4, round=1)):
        with pytest.raises(ProtocolError, match="nothing to reveal"):
            book.reveal(total, Survivors.signed(total, (0, 1, 2), SIGNING.sign), PUBLIC)


def test_only_the_receivers_signature_on_this_very_sum_counts():
    total, other = sum_of(), sum_of(round=1)
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    good = Survivors.signed(total, (0, 1, 2), SIGNING.sign)
    bad = [
        Survivors.signed(total, (0, 1, 2), stranger.sign),
        Survivors.signed(other, (0, 1, 2), SIGNING.sign),
        Survivors((0, 1, 3), good.signature),
        Survivors((0, 1, 2), bytes(64)),
        Survivors((0, 1, 2), b""),
    ]
    book = begun()[0]
    for survivors in bad:
        with pytest.raises(BadSignature, match="who sent to node 99 in round 0 is not signed by it"):
            book.reveal(total, survivors, PUBLIC)
    with pytest.raises(BadSignature):
        book.reveal(total, good, b"no key")
    assert book.reveal(total, good, PUBLIC) == (3, 4)  # what was refused has used nothing up


@pytest.mark.parametrize("alive", [(0, 1), (), (0, 1, 2, 3, 4), (0, 1, 7), (0, 1, 1, 2)])
def test_sets_of_survivors_that_make_no_sense_are_refused(alive):
    total = sum_of()
    with pytest.raises(ProtocolError, match=r"allowed are at least 3 of them, and not all: drop the round"):
        begun()[0].reveal(total, Survivors.signed(total, alive, SIGNING.sign), PUBLIC)


def test_nobody_helps_to_expose_himself():
    total = sum_of()
    with pytest.raises(ProtocolError, match="node 4 is declared dead to itself"):
        begun()[4].reveal(total, Survivors.signed(total, (0, 1, 2, 3), SIGNING.sign), PUBLIC)


def test_what_is_revealed_opens_no_other_sum():
    total, later = sum_of(4), sum_of(4, round=1)
    revealed = correction(total, (3,), secrets(0), 200)
    assert not np.intersect1d(words(revealed), words(correction(later, (3,), secrets(0), 200))).size


# Ops


def test_the_ops_weigh_mask_and_sum():
    vectors, weights = models(3), (0.2, 0.3, 0.1)
    values = []
    for me, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        op = masked(secrets(me))
        static = {"weight": weight, "round": 4, "receiver": RECEIVER, "senders": (0, 1, 2)}
        assert op.spec([Spec((50,))], static) == Spec((50,), "int32")
        value = op.solve(Task((vector,), static, Key(0, me, 0)))
        assert value.dtype == torch.int32
        assert torch.equal(value, mask(vector * weight, sum_of(3, round=4), secrets(me)))
        values.append(value)
    assert unmasked.spec([Spec((50,), "int32")], {}) == Spec((50,))
    found = unmasked.solve(Task(tuple(values), {}, Key(0, 99, 0)))
    expected = plain([vector * weight for vector, weight in zip(vectors, weights, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2 / SCALE)


def judged(total, own, senders=3, weight=0.75):
    task = Task((torch.tensor(total), torch.tensor(own)), {"weight": weight, "senders": senders}, Key(0, 99, 0))
    return plausible.solve(task)["plausible"]


def test_a_sum_is_plausible_near_the_own_model_and_in_range():
    assert judged([0.75, -0.75], [1.0, -1.0])
    assert judged([0.75 * (1 + FARTHEST), 0.0], [1.0, 0.0])
    assert not judged([0.76 * (1 + FARTHEST), 0.0], [1.0, 0.0])
    assert judged([0.74 * FARTHEST, 0.0], [0.0, 0.0])  # of a model that is small, as at the start
    assert not judged([0.76 * FARTHEST, 0.0], [0.0, 0.0])
    assert judged([0.75 * 80.0, 0.0], [10.0, 0.0])  # noisy models differ by as much as they are large
    large = [600.0, 0.0]
    assert judged([LIMIT / 3 - 1, 0.0], large)
    assert not judged([LIMIT / 3, 0.0], large)
    assert not judged([LIMIT / 3 - 1, 0.0], large, senders=4)
    assert not judged([0.1, 0.0], [float("nan"), 0.0])
    assert plausible.spec([Spec((2,)), Spec((2,))], {}).names == ("plausible",)


def test_a_part_of_random_words_makes_no_plausible_sum():
    vectors, rng = models(3, seed=2), np.random.default_rng(0)
    lie = torch.from_numpy(rng.integers(-(2**31), 2**31, 50).astype(np.int32))
    parts = [mask(vector * 0.25, sum_of(3), secrets(me)) for me, vector in enumerate(vectors)]
    assert judged(unmask(parts).tolist(), vectors[0].tolist())
    assert not judged(unmask([*parts[:2], lie]).tolist(), vectors[0].tolist())


def test_what_is_masked_and_summed_is_left_as_it_was():
    (vector,) = models(1)
    before = vector.clone()
    value = mask(vector, sum_of(), secrets(0))
    kept = value.clone()
    unmask([value, value])
    assert torch.equal(vector, before)
    assert torch.equal(value, kept)
