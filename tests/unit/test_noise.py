"""Streams of normal numbers: what they are, and who can repeat them."""

import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from node.op import Key
from node.privacy.noise import Keystream, Seeded, secret, seeded

KEY = bytes(range(32))
COUNT = 40_000
keys = st.builds(Key, st.integers(0, 2**32), st.integers(0, 2**20), st.integers(0, 2**32))


def test_the_words_are_those_of_rfc_8439():
    nonce = bytes.fromhex("000000090000004a00000000")  # section 2.3.2, whose block counter is 1: the second block here
    words = Keystream(KEY, nonce).words(32)[16:]
    block = (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert words.tobytes().hex() == block
    assert words.dtype == np.uint32


@given(st.lists(st.integers(0, 50), max_size=5), st.binary(min_size=12, max_size=12))
def test_a_stream_of_words_goes_on_where_it_stopped(counts, nonce):
    whole, parts = Keystream(KEY, nonce), Keystream(KEY, nonce)
    expected = whole.words(sum(counts))
    found = [parts.words(count) for count in counts]
    assert np.array_equal(np.concatenate([np.zeros(0, np.uint32), *found]), expected)


@given(st.integers(0, 33), st.integers(0, 5))
def test_normals_are_box_muller_s_in_float64(count, skipped):
    stream = Keystream(KEY)
    stream.normals(2 * skipped)
    found = stream.normals(count)
    cipher = Cipher(ChaCha20(KEY, bytes(16)), mode=None).encryptor()
    words = np.frombuffer(cipher.update(bytes(8 * (skipped + 17))), "<u4")[2 * skipped :].astype(float)
    expected = []
    for first, second in words.reshape(-1, 2):
        radius, angle = np.sqrt(-2 * np.log((first + 1) / 2**32)), 2 * np.pi * second / 2**32
        expected += [radius * np.cos(angle), radius * np.sin(angle)]
    assert found.shape == (count,)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected[:count], rtol=1e-12, atol=1e-12)


def test_extreme_words_give_finite_numbers(monkeypatch):
    for word in (0, 2**32 - 1):
        monkeypatch.setattr(Keystream, "words", lambda self, count, word=word: np.full(count, word, np.uint32))
        assert np.isfinite(Keystream(KEY).normals(4)).all()
        assert np.abs(Keystream(KEY).normals(4)).max() < 6.7


@pytest.mark.parametrize(
    "stream", [Keystream(KEY), Seeded(Key(1, 2, 3)), secret(Key(0, 0, 0))], ids=["keystream", "seeded", "secret"]
)
def test_numbers_are_standard_normal_and_independent(stream):
    numbers = stream.normals(COUNT)
    # The secret stream differs in every run: the bounds are those of one chance in a billion.
    assert abs(numbers.mean()) < 6.2 / np.sqrt(COUNT)
    assert abs(numbers.var() - 1) < 6.2 * np.sqrt(2 / COUNT)
    assert stats.kstest(numbers, "norm").pvalue > 1e-9
    for lag in (1, 2, 3):
        assert abs(np.mean(numbers[:-lag] * numbers[lag:])) < 6.2 / np.sqrt(COUNT - lag)


def test_both_numbers_of_a_pair_are_independent():
    first, second = Keystream(KEY).normals(COUNT).reshape(-1, 2).T
    assert abs(np.mean(first * second)) < 5 / np.sqrt(len(first))
    assert abs(np.mean((first**2 - 1) * (second**2 - 1))) < 10 / np.sqrt(len(first))


@given(keys, st.integers(1, 40))
def test_a_seeded_stream_repeats(key, count):
    assert np.array_equal(seeded(key).normals(count), Seeded(key).normals(count))


@given(keys, keys)
def test_other_tasks_have_other_noise(one, other):
    assert np.array_equal(Seeded(one).normals(4), Seeded(other).normals(4)) == (one == other)


@given(keys)
def test_noise_is_apart_from_what_else_a_task_draws(key):
    noise = Seeded(key).normals(200)
    following = Key(key.seed, key.node, key.counter + 1)
    for draws in (key.rng(), following.rng()):
        assert not np.intersect1d(noise, draws.standard_normal(2000)).size


def test_a_secret_stream_never_repeats():
    key = Key(1, 2, 3)
    assert not np.intersect1d(secret(key).normals(100), secret(key).normals(100)).size


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=12, max_size=12))
def test_every_nonce_has_a_stream_of_its_own(one, other):
    assert np.array_equal(Keystream(KEY, one).words(4), Keystream(KEY, other).words(4)) == (one == other)


@pytest.mark.parametrize(("key", "nonce"), [(bytes(31), bytes(12)), (bytes(32), bytes(11)), (bytes(32), bytes(16))])
def test_keys_and_nonces_of_other_lengths_are_refused(key, nonce):
    with pytest.raises(ValueError):
        Keystream(key, nonce)


def test_two_processes_agree_bit_for_bit():
    code = (
        "import sys; from node.privacy.noise import Keystream\n"
        "sys.stdout.write(Keystream(bytes(range(32)), bytes(range(12))).normals(1001).tobytes().hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == Keystream(KEY, bytes(range(12))).normals(1001).tobytes().hex()
