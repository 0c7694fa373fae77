"""Sealed chunks: what was sealed comes out, and nothing that anybody has changed, moved or kept from another time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadFrame, BadSignature
from node.live import bulk_ciphers
from node.transfer.sealing import KEY_BYTES, PROOF_BYTES, TAG_BYTES, Seal, choose, fresh_key

KEY = bytes(range(KEY_BYTES))
BOTH = ("aes-256-gcm", "chacha20-poly1305")


def sealed(seal, index, chunk):
    room = memoryview(bytearray(len(chunk) + TAG_BYTES))
    seal.seal(index, chunk, room)
    return bytes(room)


def opened(seal, index, data):
    room = memoryview(bytearray(len(data) - TAG_BYTES))
    seal.open(index, data, room)
    return bytes(room)


@pytest.mark.parametrize("cipher", BOTH)
@pytest.mark.parametrize("chunk", [b"", b"x", bytes(100_000)])
def test_what_was_sealed_comes_out(cipher, chunk):
    seal = Seal(KEY, cipher, b"transfer")
    data = sealed(seal, 3, chunk)
    assert len(data) == len(chunk) + TAG_BYTES
    assert opened(Seal(KEY, cipher, b"transfer"), 3, data) == chunk
    assert len(chunk) < 16 or chunk not in data


@given(st.sampled_from(BOTH), st.binary(min_size=1, max_size=50), st.data())
def test_a_changed_bit_is_noticed(cipher, chunk, data):
    seal = Seal(KEY, cipher, b"transfer")
    changed = bytearray(sealed(seal, 0, chunk))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadSignature, match="chunk 0 was changed on its way"):
        opened(seal, 0, bytes(changed))


@pytest.mark.parametrize("cipher", BOTH)
def test_a_chunk_fits_its_place_its_transfer_and_its_key_alone(cipher):
    data = sealed(Seal(KEY, cipher, b"transfer"), 5, b"chunk")
    for other, index in [
        (Seal(KEY, cipher, b"transfer"), 6),
        (Seal(KEY, cipher, b"transfer 2"), 5),
        (Seal(bytes(KEY_BYTES), cipher, b"transfer"), 5),
        (Seal(KEY, BOTH[1 - BOTH.index(cipher)], b"transfer"), 5),
    ]:
        with pytest.raises(BadSignature):
            opened(other, index, data)


@pytest.mark.parametrize("cipher", BOTH)
def test_a_proof_shows_the_key_and_is_no_chunk(cipher):
    seal = Seal(KEY, cipher, b"transfer")
    proof = seal.proof()
    assert len(proof) == PROOF_BYTES
    seal.check(proof)
    for wrong in (bytes(PROOF_BYTES), sealed(seal, 0, b""), Seal(KEY, cipher, b"other").proof()):
        with pytest.raises(BadSignature, match="does not know the key"):
            seal.check(wrong)
    with pytest.raises(BadSignature):
        opened(seal, 0, proof)


@pytest.mark.parametrize(("key", "cipher"), [(KEY[:-1], BOTH[0]), (b"", BOTH[0]), (KEY, "rot13"), (KEY, "")])
def test_an_unknown_cipher_or_a_short_key_is_refused(key, cipher):
    with pytest.raises(BadFrame, match=r"known are aes-256-gcm, chacha20-poly1305"):
        Seal(key, cipher, b"")


def test_the_first_of_ours_that_a_peer_knows_is_chosen():
    assert choose(BOTH, BOTH[::-1]) == "chacha20-poly1305"
    assert choose(("new", "aes-256-gcm"), BOTH[::-1]) == "aes-256-gcm"
    with pytest.raises(BadFrame, match="no common cipher: a peer knows rot13"):
        choose(("rot13",), BOTH)
    with pytest.raises(BadFrame, match="a peer knows none"):
        choose((), BOTH)


def test_the_order_follows_from_the_trial(monkeypatch):
    assert sorted(bulk_ciphers.ciphers()) == sorted(BOTH)
    monkeypatch.setattr(bulk_ciphers, "_seconds_a_call", {"aes-256-gcm": 2.0, "chacha20-poly1305": 1.0}.get)
    assert bulk_ciphers.ciphers.__wrapped__() == ("chacha20-poly1305", "aes-256-gcm")


def test_no_key_comes_twice():
    assert len({fresh_key() for _ in range(100)}) == 100
    assert len(fresh_key()) == KEY_BYTES
