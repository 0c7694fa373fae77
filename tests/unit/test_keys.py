"""Secrets between two nodes, and the streams that come from them."""

import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadSignature, ConfigError, NotAMember, ProtocolError
from node.identity import Identity, Roster
from node.op import Key
from node.privacy.keys import PairSecrets, Rounds

RUN = b"run-1"
PRIVATE = [X25519PrivateKey.from_private_bytes(bytes([i + 1] * 32)) for i in range(4)]
PUBLIC = {i: key.public_key().public_bytes_raw() for i, key in enumerate(PRIVATE)}


def exchanged(me, run=RUN, public=PUBLIC):
    return PairSecrets.exchanged(me, PRIVATE[me].private_bytes_raw(), public, run)


def seeded(me, run=RUN, seed=7):
    return PairSecrets.seeded(me, seed, run)


MADE = {"exchanged": exchanged, "seeded": seeded}


def words(secrets, *where, purpose="secagg", count=8):
    return secrets.stream(purpose, *where).words(count).tolist()


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@given(pair=st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True), round=st.integers(0, 2**32 - 1))
def test_both_ends_have_the_same_stream(made, pair, round):
    one, other = pair
    assert words(made(one), other, round, 9) == words(made(other), one, round, 9)
    shared = [made(a).stream("decor", b, round).normals(11).tobytes() for a, b in (pair, pair[::-1])]
    assert shared[0] == shared[1]


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_every_purpose_pair_round_receiver_and_run_has_a_stream_of_its_own(made):
    streams = [
        words(made(me, run), peer, round, receiver, purpose=purpose)
        for run in (b"a", b"b")
        for purpose in ("decor", "secagg", "share")
        for me, peer in ((0, 1), (0, 2), (1, 2))
        for round in (0, 1, 2**31, 2**32, 2**63)
        for receiver in (0, 1, 2**31)
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_the_stream_is_what_the_standards_give():
    """X25519 of RFC 7748, HKDF of RFC 5869, ChaCha20 of RFC 8439, put together by hand."""
    secret = PRIVATE[2].exchange(PRIVATE[1].public_key())
    info = b"starling/pair/1\0" + b"secagg\0" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + RUN
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(secret)
    nonce = bytes(4) + (5).to_bytes(4, "little") + (3).to_bytes(8, "little")
    keystream = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(32))
    assert words(exchanged(1), 2, 5, 3) == np.frombuffer(keystream, "<u4").tolist()


def test_no_third_node_has_the_stream():
    stranger = PairSecrets.exchanged(1, PRIVATE[3].private_bytes_raw(), PUBLIC, RUN)  # claims to be node 1
    assert words(stranger, 2, 0) != words(exchanged(1), 2, 0)


def test_secrets_from_a_seed_are_marked():
    assert seeded(0).insecure
    assert not exchanged(0).insecure
    assert words(seeded(0, seed=1), 1, 0) != words(seeded(0, seed=2), 1, 0)


def test_a_roster_and_an_identity_are_all_it_takes():
    identities = [Identity.generate() for _ in range(3)]
    roster = Roster([who.card(i, f"tcp://127.0.0.1:{9000 + i}", "net") for i, who in enumerate(identities)])
    public = {card.node: card.curve_key for card in roster}
    ends = [PairSecrets.exchanged(i, identities[i].curve_secret, public, RUN) for i in (0, 2)]
    assert words(ends[0], 2, 4) == words(ends[1], 0, 4)


def test_a_peer_without_a_key_is_not_a_member():
    with pytest.raises(NotAMember, match="node 9 has shown no key"):
        exchanged(0).stream("decor", 9, 0)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"short"], ids=["zero", "low order", "short"])
def test_a_key_that_would_give_a_known_secret_is_refused(key):
    with pytest.raises(BadSignature, match="X25519 key of node 1 is of no use"):
        exchanged(0, public={1: key}).stream("decor", 1, 0)


def test_a_run_without_a_name_is_refused():
    for made in MADE.values():
        with pytest.raises(ConfigError, match="run: an empty name"):
            made(0, run=b"")


@pytest.mark.parametrize(("round", "receiver"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**32)])
def test_rounds_and_receivers_beyond_the_nonce_are_refused(round, receiver):
    with pytest.raises(ProtocolError, match=f"round {round} has no keystream for node {receiver}"):
        seeded(0).stream("decor", 1, round, receiver)


def test_a_node_shares_with_itself_what_is_its_own_and_nothing_else():
    for purpose, peer in (("decor", 2), ("secagg", 2), ("share", 2), ("self", 1)):
        with pytest.raises(ProtocolError, match=f"node 2 shares no secret with node {peer} for '{purpose}'"):
            seeded(2).stream(purpose, peer, 0)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_is_a_node_s_own_follows_from_its_secret_key_and_from_nobody_else_s(made):
    own = [
        words(made(me), me, round, receiver, purpose="self") for me in (1, 2) for round, receiver in ((0, 1), (1, 0))
    ]
    assert len({tuple(stream) for stream in own}) == 4
    assert words(made(1), 1, 0, 1, purpose="self") == own[0]
    assert words(made(1, b"b"), 1, 0, 1, purpose="self") != own[0]
    assert own[0] != words(made(1), 2, 0, 1, purpose="secagg")


def test_what_is_kept_on_disk_is_named_by_run_node_and_secrets():
    made = [exchanged(0), exchanged(1), exchanged(0, b"b"), seeded(0), seeded(0, seed=8), seeded(1), seeded(0, b"b")]
    names = [secrets.basis(Key(0, 0, 0)) for secrets in made]
    assert len(set(names)) == len(names)
    assert names[3] == seeded(0).basis(Key(1, 2, 3))


def test_two_processes_agree_bit_for_bit():
    code = (
        "import sys; from node.privacy.keys import PairSecrets\n"
        f"secrets = PairSecrets.exchanged(1, bytes.fromhex('{PRIVATE[1].private_bytes_raw().hex()}'), "
        f"{{0: bytes.fromhex('{PUBLIC[0].hex()}')}}, {RUN!r})\n"
        "sys.stdout.write(secrets.stream('decor', 0, 3).normals(999).tobytes().hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == exchanged(0).stream("decor", 1, 3).normals(999).tobytes().hex()


# Rounds


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_no_round_is_taken_twice(taken):
    rounds, used = Rounds(), set()
    for round, receiver in taken:
        if any(round <= earlier for earlier, to in used if to == receiver):
            with pytest.raises(ProtocolError, match="a mask that is used twice hides nothing"):
                rounds.take(round, receiver)
        else:
            rounds.take(round, receiver)
            used.add((round, receiver))
    assert rounds.last == {to: max(r for r, t in used if t == to) for _, to in sorted(used)}


def test_rounds_outlive_a_restart():
    before = Rounds()
    before.take(4, 1)
    after = Rounds(before.last)
    with pytest.raises(ProtocolError, match="round 4 for node 1 comes after round 4"):
        after.take(4, 1)
    after.take(5, 1)
    after.take(0, 2)
    assert before.last == {1: 4}
