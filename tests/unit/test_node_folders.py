"""A node's own folder, and the folder of cards: who may read what, who is let in, and what is refused in one line."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node.config import DataSection, ExperimentConfig
from node.daemon.cards import CardFolder, network_of
from node.daemon.state import open_state
from node.errors import ConfigError, TransportError
from node.identity import Card, Identity

ALICE, BOB = Identity.generate(), Identity.generate()
NETWORK = "tiny-0123"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestState:
    def test_keys_and_token_are_made_once(self, tmp_path):
        with open_state(tmp_path / "state") as first:
            pass
        with open_state(tmp_path / "state") as second:
            assert second.identity.signing_public == first.identity.signing_public
            assert second.token == first.token

    def test_they_are_the_owners_alone(self, tmp_path):
        before = os.umask(0)
        try:
            with open_state(tmp_path / "state") as state:
                pass
        finally:
            os.umask(before)
        folder = state.folder
        assert [mode(path) for path in (folder, folder / "keys")] == [0o700] * 2
        assert [mode(path) for path in (folder / "keys" / "node.key", folder / "admin.token")] == [0o600] * 2

    def test_a_mounted_folder_may_be_open_to_others(self, tmp_path):
        (tmp_path / "state").mkdir(mode=0o755)
        with open_state(tmp_path / "state") as state:
            assert mode(state.folder / "keys") == 0o700

    def test_a_second_holder_is_refused(self, tmp_path):
        with open_state(tmp_path), pytest.raises(ConfigError, match="in use by another process"), open_state(tmp_path):
            pass

    def test_nothing_but_the_secrets_remains(self, tmp_path):
        with open_state(tmp_path):
            pass
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["admin.token", "keys", "node.key"]

    def test_what_a_killed_start_left_is_replaced(self, tmp_path):
        (tmp_path / "keys").mkdir(mode=0o700)
        for path in (tmp_path / "keys" / "node.new", tmp_path / "admin.new"):
            path.write_text("half")
        with open_state(tmp_path) as state:
            assert len(state.token) >= 32

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda folder: (folder / "keys" / "node.key").chmod(0o640), "node.key is open to others"),
            (lambda folder: (folder / "keys" / "node.key").write_text("{"), "node.key holds no keys"),
            (lambda folder: (folder / "admin.token").chmod(0o644), "admin.token is open to others"),
            (lambda folder: (folder / "admin.token").write_text(""), "admin.token holds no token"),
            (lambda folder: (folder / "admin.token").write_bytes(b"\xff" * 40), "admin.token cannot be used"),
        ],
        ids=["open key", "broken key", "open token", "empty token", "broken token"],
    )
    def test_a_spoiled_secret_is_never_replaced_silently(self, tmp_path, spoil, said):
        with open_state(tmp_path):
            pass
        spoil(tmp_path)
        with pytest.raises(ConfigError, match=said), open_state(tmp_path):
            pass

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "state").write_text("")
        with pytest.raises(ConfigError, match=r"state: .* cannot be used"), open_state(tmp_path / "state"):
            pass

    def test_it_shows_no_secret(self, tmp_path):
        with open_state(tmp_path) as state:
            assert state.token not in repr(state)


class TestCards:
    @pytest.fixture
    def folder(self, tmp_path):
        return CardFolder(tmp_path / "cards", NETWORK, 3)

    def test_what_is_published_is_read(self, folder):
        cards = [
            ALICE.card(2, "tcp://127.0.0.1:2", NETWORK),
            BOB.card(0, "tcp://[::1]:1", NETWORK),
        ]
        for card in cards:
            folder.publish(card)
        assert list(folder.read().items()) == [(0, cards[1]), (2, cards[0])]

    def test_a_new_start_replaces_the_card(self, folder, tmp_path):
        folder.publish(ALICE.card(0, "tcp://127.0.0.1:1", NETWORK))
        assert folder.read()[0].address == "tcp://127.0.0.1:1"
        CardFolder(tmp_path / "cards", NETWORK, 3).publish(ALICE.card(0, "tcp://127.0.0.1:2", NETWORK))
        assert folder.read()[0].address == "tcp://127.0.0.1:2"
        assert [path.name for path in (tmp_path / "cards").iterdir()] == ["0.card"]

    def test_a_place_that_is_taken_is_not(self, folder):
        folder.publish(ALICE.card(0, "tcp://127.0.0.1:1", NETWORK))
        with pytest.raises(ConfigError, match="two nodes have number 0, or this one's state was lost"):
            folder.publish(BOB.card(0, "tcp://127.0.0.1:2", NETWORK))
        assert folder.read()[0].signing_key == ALICE.signing_public

    def test_what_is_no_card_of_ours_is_replaced(self, folder, tmp_path):
        (tmp_path / "cards").mkdir()
        (tmp_path / "cards" / "0.card").write_text("half a ca")
        with capture_logs():
            folder.publish(ALICE.card(0, "tcp://127.0.0.1:1", NETWORK))
        assert list(folder.read()) == [0]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("1", ALICE.card(1, "tcp://127.0.0.1:1", "other-77").to_text(), "for other-77"),
            ("3", ALICE.card(3, "tcp://127.0.0.1:1", NETWORK).to_text(), "there is no node 3"),
            ("1", ALICE.card(2, "tcp://127.0.0.1:1", NETWORK).to_text(), "it is the card of node 2"),
            ("1", "", "not a card"),
            ("1", "é" * 50, "not a card"),
            ("1", "A" * 5000, "a card of"),
        ],
        ids=["network", "number", "name", "empty", "not text", "long"],
    )
    def test_a_stranger_is_left_out_and_named_once(self, folder, tmp_path, name, text, said):
        (tmp_path / "cards").mkdir()
        (tmp_path / "cards" / f"{name}.card").write_text(text, encoding="utf-8")
        with capture_logs() as logs:
            assert folder.read() == folder.read() == {}
        assert [log["event"] for log in logs] == ["card refused"]
        assert said in logs[0]["reason"]

    @given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_a_changed_card_is_never_believed(self, tmp_path_factory, at, bit):
        true = ALICE.card(1, "tcp://127.0.0.1:1", NETWORK).to_bytes()
        changed = bytearray(true)
        changed[at % len(true)] ^= 1 << bit
        place = tmp_path_factory.mktemp("cards")
        try:
            text = Card.from_bytes(bytes(changed)).to_text()
        except TransportError:
            return  # not even a card
        (place / "1.card").write_text(text)
        with capture_logs():
            assert CardFolder(place, NETWORK, 3).read() == {}

    def test_a_card_that_arrives_in_two_parts(self, folder, tmp_path):
        text = ALICE.card(1, "tcp://127.0.0.1:1", NETWORK).to_text()
        (tmp_path / "cards").mkdir()
        for part in (text[:50], text):
            (tmp_path / "cards" / "1.card").write_text(part)
            with capture_logs():
                found = folder.read()
        assert list(found) == [1]

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "cards").write_text("")
        with pytest.raises(ConfigError, match=r"cards: .* cannot be written to"):
            CardFolder(tmp_path / "cards", NETWORK, 3).publish(ALICE.card(0, "tcp://127.0.0.1:1", NETWORK))


class TestNetwork:
    CONFIG = ExperimentConfig(name="tiny", data=DataSection(name="/here/table.csv"))

    def test_is_the_same_wherever_the_files_lie(self):
        there = self.CONFIG.model_copy(update={"data": DataSection(name="/there/table.csv")})
        assert network_of(there) == network_of(self.CONFIG)

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"nodes": 3}, {"name": "other"}, {"data": DataSection(name="/here/other.csv")}]
    )
    def test_differs_with_whatever_else_differs(self, change):
        assert network_of(self.CONFIG.model_copy(update=change)) != network_of(self.CONFIG)
