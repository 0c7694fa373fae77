"""Shamir's scheme: enough shares give the secret to the last bit, fewer fit every secret alike."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.privacy.noise import Keystream
from node.privacy.sharing import PRIME, field_words, join, split

WORDS = st.integers(0, PRIME - 1)


def coins(seed=1):
    return Keystream(seed.to_bytes(32, "little"))


def words(values):
    return np.array(values, np.uint32)


@given(st.lists(WORDS, min_size=1, max_size=7), st.integers(1, 9), st.integers(0, 2**64), st.data())
def test_any_shares_that_are_enough_give_the_secret(secret, shares, seed, data):
    threshold = data.draw(st.integers(1, shares))
    found = split(words(secret), shares, threshold, coins(seed))
    assert (found.shape, found.dtype) == ((shares, len(secret)), np.uint32)
    points = data.draw(st.permutations(range(1, shares + 1)))[: data.draw(st.integers(threshold, shares))]
    rows = found[[point - 1 for point in points]]
    assert join(points, rows).tolist() == secret


@given(WORDS, WORDS, st.integers(2, 7))
def test_shares_that_are_too_few_fit_every_secret(secret, other, threshold):
    """With any other secret in the place of the last share there is a polynomial through all of them."""
    few = split(words([secret]), threshold - 1, threshold, coins())
    whole = join(list(range(threshold)), np.vstack([words([other]), few]))
    assert whole.tolist() == [other]  # at 0 lies what was put there, whatever the shares are


def test_a_share_by_itself_is_uniform():
    """Of the same secret, over many polynomials: a mean of 4000 is normal, and six deviations are two in 10**9."""
    found = split(np.zeros(4000, np.uint32), 3, 2, coins()) / PRIME
    assert (np.abs(found.mean(axis=1) - 0.5) < 6 / np.sqrt(12 * 4000)).all()


def test_a_threshold_of_one_hands_out_the_secret():
    assert split(words([5, 6]), 3, 1, coins()).tolist() == [[5, 6]] * 3


def test_the_formula_is_lagrange_s():
    """3 + 2x + x**2 at 1, 2 and 5, by hand."""
    values = {1: 6, 2: 11, 5: 38}
    for points in itertools.permutations(values):
        assert join(list(points), words([[values[point]] for point in points])).tolist() == [3]


def test_the_largest_words_do_not_overflow():
    secret = words([PRIME - 1] * 3)
    for points in ([1, 2, 3], [98, 99, 100]):
        rows = split(secret, 100, 3, coins())[[point - 1 for point in points]]
        assert np.array_equal(join(points, rows), secret)


def test_a_share_that_was_changed_gives_another_secret():
    shares = split(words([1, 2]), 4, 3, coins())
    shares[1, 0] ^= 4
    assert join([1, 2, 3], shares[:3]).tolist()[0] != 1
    assert join([1, 2, 3], shares[:3]).tolist()[1] == 2
    assert join([1, 3, 4], shares[[0, 2, 3]]).tolist() == [1, 2]


@pytest.mark.parametrize("word", [0, PRIME - 1, PRIME, PRIME + 1, 2**32 - 1])
def test_words_of_the_field_are_below_the_prime(word):
    class Fixed:
        def words(self, count):
            return np.full(count, word, np.uint32)

    assert field_words(Fixed(), 2).tolist() == [word % PRIME] * 2
