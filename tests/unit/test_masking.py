"""Secure aggregation: the sum comes out, nothing else does, and no mask is used twice."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ComputeError, ProtocolError
from node.op import Key, Spec, Task
from node.privacy.keys import PairSecrets
from node.privacy.masking import (
    FARTHEST,
    LIMIT,
    SCALE,
    SEED_WORDS,
    MaskedSum,
    mask,
    masked,
    own_stream,
    pair_seed,
    plausible,
    quantise,
    summed,
    unmask,
    unmasked,
)
from node.privacy.sharing import field_words

RUN = b"run"
RECEIVER = 99


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


# Masks of one's own


def test_a_mask_of_its_own_hides_a_part_whose_common_ones_are_known():
    total, model = sum_of(), models(1, 2000)[0]
    single, double = (mask(model, total, secrets(0), recoverable) for recoverable in (False, True))
    common = [total.key(pair_seed(total, peer, secrets(0))) for peer in (1, 2, 3, 4)]
    torch.testing.assert_close(unmask([single], removed=common), model, rtol=1e-6, atol=1 / SCALE)
    assert float(unmask([double], removed=common).abs().mean()) > LIMIT / 4
    own = total.key(field_words(own_stream(total, secrets(0)), SEED_WORDS))
    assert torch.equal(unmask([double], removed=[*common, own]), unmask([single], removed=common))


def test_both_ends_make_the_same_of_a_seed_and_every_sum_something_else():
    total, later = sum_of(), sum_of(round=1)
    seeds = [pair_seed(which, *ends) for which in (total, later) for ends in ((1, secrets(0)), (0, secrets(1)))]
    assert np.array_equal(seeds[0], seeds[1])
    assert np.array_equal(seeds[2], seeds[3])
    assert not np.intersect1d(seeds[0], seeds[2]).size
    assert (len(seeds[0]), seeds[0].dtype) == (SEED_WORDS, np.uint32)
    named = [sum_of(), sum_of(4), sum_of(round=1), sum_of(receiver=8)]
    assert len({which.key(seeds[0]) for which in named} | {total.key(seeds[2])}) == 5


def test_what_hides_a_sum_is_added_and_taken_away():
    total, (model,) = sum_of(), models(1)
    value, keys = mask(model, total, secrets(0)), [total.key(np.full(SEED_WORDS, i, np.uint32)) for i in range(3)]
    assert torch.equal(unmask([value], added=keys, removed=keys[::-1]), unmask([value]))
    assert not torch.equal(unmask([value], added=keys), unmask([value], added=keys[:2]))


# Ops


def test_the_ops_weigh_mask_and_sum():
    vectors, weights = models(3), (0.2, 0.3, 0.1)
    values = []
    for me, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        op = masked(secrets(me))
        static = {"weight": weight, "round": 4, "receiver": RECEIVER, "senders": (0, 1, 2), "recoverable": False}
        assert op.spec([Spec((50,))], static) == Spec((50,), "int32")
        value = op.solve(Task((vector,), static, Key(0, me, 0)))
        assert value.dtype == torch.int32
        assert torch.equal(value, mask(vector * weight, sum_of(3, round=4), secrets(me)))
        own = op.solve(Task((vector,), {**static, "recoverable": True}, Key(0, me, 0)))
        assert torch.equal(own, mask(vector * weight, sum_of(3, round=4), secrets(me), recoverable=True))
        values.append(value)
    assert unmasked.spec([Spec((50,), "int32")], {}) == Spec((50,))
    found = unmasked.solve(Task(tuple(values), {}, Key(0, 99, 0)))
    expected = plain([vector * weight for vector, weight in zip(vectors, weights, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2 / SCALE)
    key = bytes(range(32))
    hidden = unmasked.solve(Task(tuple(values), {"added": (key.hex(),), "removed": ()}, Key(0, 99, 0)))
    assert torch.equal(hidden, unmask(values, added=[key]))


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


# What a receiver says of weights


def weighed(*weights):
    return MaskedSum(RUN, 0, RECEIVER, tuple(range(len(weights))), weights)


def test_weights_are_part_of_what_a_sum_is():
    """Who was told others has another sum: its masks do not cancel, and its shares open nothing."""
    digests = {total.digest for total in (sum_of(3), weighed(1.0, 2.0, 3.0), weighed(1.0, 2.0, 1e-9))}
    assert len(digests) == 3
    told = [weighed(1.0, 2.0, 3.0)] * 2 + [weighed(1.0, 2.0, 1e-9)]
    vectors = models(3, 2000)
    parts = [mask(vector, total, secrets(me)) for me, (vector, total) in enumerate(zip(vectors, told, strict=True))]
    assert float(unmask(parts).abs().mean()) > 500
    alike = [mask(vector, told[0], secrets(me)) for me, vector in enumerate(vectors)]
    assert unmask(alike).numpy() == pytest.approx(plain(vectors).numpy(), abs=3 / SCALE)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 2.0, 0.0), (1.0, -2.0, 3.0), (1.0, float("nan"), 1.0)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ProtocolError, match="each has one, finite, above 0"):
        MaskedSum(RUN, 0, RECEIVER, (0, 1, 2), weights)


@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_parts_are_added_up_in_any_order_and_grouping(order, cut):
    parts = [mask(vector, sum_of(6), secrets(me)) for me, vector in enumerate(models(6))]
    first, *rest = (parts[place] for place in order)
    held = summed.solve(Task((first, *rest[: cut - 1]), {}, Key(0, 99, 0)))
    assert held.dtype == torch.int32
    assert torch.equal(unmask([held, *rest[cut - 1 :]]), unmask(parts))
