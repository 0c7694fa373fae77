"""Keys, cards and rosters: what is saved can be loaded, and nothing false or malformed is believed."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadFrame, BadSignature, ConfigError, FrameTooLarge, NotAMember
from node.identity import CARD_BYTES, Card, Identity, Roster

ALICE, BOB = Identity.generate(), Identity.generate()
CARD = ALICE.card(3, "tcp://127.0.0.1:41234", "run-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestKeyFile:
    def test_what_is_saved_is_loaded(self, folder: Path):
        ALICE.save(folder / "id.json")
        again = Identity.load(folder / "id.json")
        assert again.signing_public == ALICE.signing_public
        assert (again.curve_public, again.curve_secret) == (ALICE.curve_public, ALICE.curve_secret)

    def test_only_the_owner_can_read_it(self, folder: Path):
        before = os.umask(0)
        try:
            ALICE.save(folder / "id.json")
        finally:
            os.umask(before)
        assert (mode(folder), mode(folder / "id.json")) == (0o700, 0o600)

    def test_an_existing_file_is_never_overwritten(self, folder: Path):
        ALICE.save(folder / "id.json")
        with pytest.raises(ConfigError, match="cannot be created"):
            BOB.save(folder / "id.json")
        assert Identity.load(folder / "id.json").signing_public == ALICE.signing_public

    def test_a_file_that_others_can_read_is_refused(self, folder: Path):
        ALICE.save(folder / "id.json")
        (folder / "id.json").chmod(0o640)
        with pytest.raises(ConfigError, match=r"open to others.*chmod 600"):
            Identity.load(folder / "id.json")

    @pytest.mark.parametrize("use", ["save", "load"])
    def test_a_folder_that_others_can_enter_is_refused(self, folder: Path, use: str):
        ALICE.save(folder / "id.json")
        folder.chmod(0o755)
        with pytest.raises(ConfigError, match=r"open to others.*chmod 700"):
            BOB.save(folder / "other.json") if use == "save" else Identity.load(folder / "id.json")

    def test_a_missing_file_is_no_new_identity(self, folder: Path):
        folder.mkdir(mode=0o700)
        with pytest.raises(ConfigError, match="No such file"):
            Identity.load(folder / "id.json")
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x00\xff",
            b"{}",
            b"[1, 2]",
            b'{"starling_identity":1,"signing_key":"AAAA","curve_key":"AAAA"}',
            b'{"starling_identity":2,"signing_key":"' + b"A" * 43 + b'=","curve_key":"' + b"A" * 43 + b'="}',
            b"{" * 10_000,
        ],
    )
    def test_damaged_content_is_one_line(self, folder: Path, content: bytes):
        ALICE.save(folder / "id.json")
        (folder / "id.json").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            Identity.load(folder / "id.json")
        assert "\n" not in str(caught.value)
        assert "id.json" in str(caught.value)

    def test_secrets_do_not_show(self):
        assert ALICE.curve_secret.hex() not in repr(ALICE)
        assert repr(ALICE) == f"<Identity {ALICE.signing_public.hex()[:16]}>"


class TestCard:
    def test_a_true_card_verifies_after_any_journey(self):
        for card in (CARD, Card.from_bytes(CARD.to_bytes()), Card.from_text(CARD.to_text())):
            card.verify()
            assert card == CARD
        assert CARD.curve_key == ALICE.curve_public

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("node", 4),
            ("signing_key", BOB.signing_public),
            ("curve_key", BOB.curve_public),
            ("address", "tcp://127.0.0.1:41235"),
            ("network", "run-2"),
            ("signature", bytes(64)),
            ("signing_key", b"short"),
            ("node", 2**70),
        ],
        ids=["node", "signing", "curve", "address", "network", "signature", "short", "huge"],  # keys are new every time
    )
    def test_any_changed_field_is_found(self, field: str, value: object):
        with pytest.raises(BadSignature):
            dataclasses.replace(CARD, **{field: value}).verify()

    def test_a_signature_over_something_else_does_not_fit(self):
        fields = msgspec.msgpack.encode(dataclasses.astuple(CARD)[:-1])
        with pytest.raises(BadSignature):
            dataclasses.replace(CARD, signature=ALICE._signing.sign(fields)).verify()

    @pytest.mark.parametrize(
        ("node", "address", "network"),
        [
            (-1, "tcp://127.0.0.1:1", "net"),
            (2**62, "tcp://127.0.0.1:1", "net"),
            (0, "udp://127.0.0.1:1", "net"),
            (0, "tcp://127.0.0.1:1\n", "net"),
            (0, "tcp://127.0.0.1", "net"),
            (0, "tcp://" + "a" * 300 + ":1", "net"),
            (0, "tcp://127.0.0.1:1", ""),
            (0, "tcp://127.0.0.1:1", "two words"),
            (0, "tcp://127.0.0.1:1", "n" * 129),
        ],
    )
    def test_a_card_that_nobody_could_read_is_not_made(self, node: int, address: str, network: str):
        with pytest.raises(ConfigError, match=r"^card: "):
            ALICE.card(node, address, network)

    def test_the_largest_card_keeps_the_bound(self):
        card = ALICE.card(2**62 - 1, "tcp://" + "a" * 242 + ":65535", "n" * 128)
        assert len(card.to_bytes()) <= CARD_BYTES
        assert Card.from_text(card.to_text()) == card

    def test_too_long_is_too_long(self):
        with pytest.raises(FrameTooLarge):
            Card.from_bytes(bytes(CARD_BYTES + 1))
        with pytest.raises(FrameTooLarge):
            Card.from_text("A" * 10_000)

    @given(st.binary(max_size=CARD_BYTES))
    def test_random_bytes_are_refused_cleanly(self, data: bytes):
        with pytest.raises((BadFrame, BadSignature)):
            Card.from_bytes(data).verify()

    @given(st.text(max_size=300))
    def test_random_text_is_refused_cleanly(self, text: str):
        with pytest.raises((BadFrame, BadSignature)):
            Card.from_text(text).verify()

    @given(st.integers(min_value=0), st.integers(1, 255))
    def test_no_flipped_bit_is_believed(self, position: int, flip: int):
        data = bytearray(CARD.to_bytes())
        data[position % len(data)] ^= flip
        try:
            card = Card.from_bytes(bytes(data))
        except BadFrame:
            return
        with pytest.raises(BadSignature):
            card.verify()

    @given(st.integers(min_value=0))
    def test_no_truncated_card_is_read(self, length: int):
        data = CARD.to_bytes()
        with pytest.raises(BadFrame):
            Card.from_bytes(data[: length % len(data)])


class TestRoster:
    def test_looks_up_by_number_and_by_key(self):
        cards = [BOB.card(7, "tcp://127.0.0.1:7", "run-1"), CARD]
        roster = Roster(cards)
        assert [card.node for card in roster] == [3, 7]
        assert (len(roster), roster.network) == (2, "run-1")
        assert roster.card(7) is cards[0]
        assert roster.holder(ALICE.curve_public) is CARD
        assert 3 in roster
        assert 4 not in roster

    def test_a_stranger_is_nobody(self):
        roster = Roster([CARD])
        assert roster.holder(BOB.curve_public) is None
        assert roster.holder(b"") is None
        with pytest.raises(NotAMember, match=r"node 7 .*'run-1'"):
            roster.card(7)

    def test_a_false_card_spoils_it(self):
        with pytest.raises(BadSignature):
            Roster([CARD, dataclasses.replace(BOB.card(7, "tcp://127.0.0.1:7", "run-1"), node=8)])

    def test_whoever_has_verified_cards_says_so_and_only_then_is_a_false_one_taken(self):
        false = dataclasses.replace(BOB.card(7, "tcp://127.0.0.1:7", "run-1"), node=8)
        assert Roster([CARD, false], are_verified=True).card(8) == false
        with pytest.raises(ConfigError, match="the same curve_key"):
            Roster([CARD, dataclasses.replace(false, curve_key=CARD.curve_key)], are_verified=True)

    def test_twins_are_refused(self):
        address = "tcp://127.0.0.1:7"
        with pytest.raises(ConfigError, match="nodes 3 and 3 have the same node"):
            Roster([CARD, BOB.card(3, address, "run-1")])
        with pytest.raises(ConfigError, match="nodes 3 and 7 have the same signing_key"):
            Roster([CARD, ALICE.card(7, address, "run-1")])
        with pytest.raises(ConfigError, match="nodes 3 and 7 have the same curve_key"):
            Roster([CARD, Identity(BOB._signing, ALICE._curve).card(7, address, "run-1")])

    @pytest.mark.parametrize("cards", [[], [CARD, BOB.card(7, "tcp://127.0.0.1:7", "run-2")]])
    def test_all_cards_are_of_one_network(self, cards: list[Card]):
        with pytest.raises(ConfigError, match="networks"):
            Roster(cards)
