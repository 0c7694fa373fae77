"""A network's folder: private, whole after any crash, shared by processes, and never made anew by mistake."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from node.errors import ConfigError, Corrupt, StarlingError, StoreError
from node.identity import Identity
from node.trust import audit as auditing
from node.trust.audit import Audit
from node.trust.certificate import Role, id_text, peer_id
from node.trust.files import check_private, write_private
from node.trust.folder import AUDIT, EXPERIMENT, KEY, LEDGER, NETWORK, NetworkFolder
from node.trust.ledger import Founded, Invited, Ledger
from node.trust.refusal import Refused
from node.trust.request import Join
from trust_parties import ALICE, BOB, DAY_S, FOUNDER, MALLORY, NOW_S
from trust_parties import NETWORK as NETWORK_ID

EXPERIMENT_TEXT = "nodes = 4\n"
FIRST = Founded(NETWORK_ID, MALLORY.signing_public)
MORE = Invited(b"12345678", bytes(32), Role.learner, NOW_S, 1)


@pytest.fixture
def folder(tmp_path: Path) -> NetworkFolder:
    folder = NetworkFolder.create(tmp_path / "network", "demo", EXPERIMENT_TEXT, 4, "192.0.2.1:7600")
    with folder.authority() as authority:
        authority.enrol(FOUNDER, Role.learner, NOW_S)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def invite(folder: NetworkFolder, uses: int = 1):
    bootstrap = folder.bootstrap()
    with folder.authority() as authority:
        return authority.invite(Role.learner, NOW_S + DAY_S, uses, bootstrap)


def join(folder: NetworkFolder, identity: Identity, token):
    with folder.authority() as authority:
        return authority.admit(Join.by(identity, token), identity.curve_public, NOW_S)


class TestCreating:
    def test_it_is_private(self, folder):
        before = os.umask(0)
        try:
            other = NetworkFolder.create(folder.path.parent / "other", "demo", EXPERIMENT_TEXT, 4, "h:1")
        finally:
            os.umask(before)
        for path in (folder.path, other.path):
            assert mode(path) == 0o700
            assert {file.name: mode(file) for file in path.iterdir()} == dict.fromkeys(
                (NETWORK, EXPERIMENT, KEY, LEDGER), 0o600
            )

    def test_its_id_is_the_hash_of_its_first_key(self, folder):
        key = Identity.load(folder.path / KEY)
        assert folder.settings.id == id_text(peer_id(key.signing_public))
        assert folder.settings.network == folder.settings.terms().network

    def test_another_process_sees_the_same(self, folder):
        again = NetworkFolder(folder.path)
        assert again.settings == folder.settings
        assert again.experiment == EXPERIMENT_TEXT
        assert again.seen().newest() == folder.seen().newest()

    def test_nothing_is_overwritten(self, folder):
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        with pytest.raises(ConfigError, match="is not empty"):
            NetworkFolder.create(folder.path, "demo", "", 4, "h:1")
        assert {path: path.read_bytes() for path in folder.path.iterdir()} == before

    @pytest.mark.parametrize("name", ["", "two words", "-x", "a" * 65, "ä", "a/b"])
    def test_a_name_is_a_word(self, tmp_path, name):
        with pytest.raises(ConfigError, match=r"^network\.toml: name: "):
            NetworkFolder.create(tmp_path / "network", name, EXPERIMENT_TEXT, 4, "h:1")

    def test_a_place_that_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be used"):
            NetworkFolder.create(tmp_path / "file" / "network", "demo", "", 4, "h:1")

    def test_a_folder_that_others_can_enter(self, tmp_path):
        (tmp_path / "network").mkdir()
        (tmp_path / "network").chmod(0o755)
        with pytest.raises(ConfigError, match=r"open to others.*chmod 700"):
            NetworkFolder.create(tmp_path / "network", "demo", "", 4, "h:1")


class TestOpening:
    @pytest.mark.parametrize("name", [NETWORK, EXPERIMENT, KEY, LEDGER])
    def test_what_is_missing_is_not_made_anew(self, folder, name):
        (folder.path / name).unlink()
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
            NetworkFolder(folder.path)
        assert "\n" not in str(caught.value)
        assert not (folder.path / name).exists()

    @pytest.mark.parametrize("name", [KEY, LEDGER])
    def test_what_others_can_read_is_not_used(self, folder, name):
        (folder.path / name).chmod(0o644)
        with pytest.raises(ConfigError, match=r"open to others.*chmod 600"):
            NetworkFolder(folder.path)

    @pytest.mark.parametrize("name", [NETWORK, KEY, LEDGER])
    @pytest.mark.parametrize("content", [b"\xff\xfe\n", b"{}\n", b"= 1\n"])
    def test_what_is_damaged_is_one_line(self, folder, name, content):
        (folder.path / name).write_bytes(content)
        with pytest.raises(StarlingError, match=name.replace(".", r"\.")) as caught:
            NetworkFolder(folder.path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("nodes = 4", "nodes = 0", "nodes: "),
            ("open = false", "open = 7", "open: "),
            ('admission = "', 'admission = "no port at ', "admission: "),
            ("open = false", "shut = true", "shut: "),
            ("certificate_days = 30", "certificate_days = 0", "certificate_days: "),
            ('id = "', 'id = "1', "id: "),
            ('key = "', 'key = "00', "key: is not the key"),
        ],
    )
    def test_a_wrong_setting_is_named(self, folder, old, new, says):
        path = folder.path / NETWORK
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=says):
            NetworkFolder(folder.path)

    def test_another_networks_ledger_is_refused(self, folder, tmp_path):
        other = NetworkFolder.create(tmp_path / "other", "demo", EXPERIMENT_TEXT, 4, "h:1")
        (folder.path / LEDGER).write_bytes((other.path / LEDGER).read_bytes())
        with pytest.raises(ConfigError, match="ledger is that of network"):
            NetworkFolder(folder.path)

    def test_another_networks_key_signs_nothing(self, folder):
        (folder.path / KEY).unlink()
        MALLORY.save(folder.path / KEY)
        with pytest.raises(ConfigError, match=r"admission\.key: is not the key"):
            invite(NetworkFolder(folder.path))


class TestSharing:
    def test_what_one_process_invites_another_admits(self, folder):
        other = NetworkFolder(folder.path)
        token = invite(folder)
        assert join(other, ALICE, token).node == 1
        with pytest.raises(Refused, match=r"^used_up"):
            join(folder, BOB, token)

    def test_one_decides_at_a_time(self, folder):
        def is_locked() -> bool:
            with (folder.path / LEDGER).open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
            return False

        token = invite(folder)
        with folder.authority():
            assert is_locked()
        assert not is_locked()
        with pytest.raises(Refused), folder.authority() as authority:
            authority.admit(Join.by(ALICE, token), BOB.curve_public, NOW_S)
        assert not is_locked()

    def test_a_use_is_counted_once_for_all(self, folder):
        """Four processes let different peers in with one token of two uses, at the same time."""
        token = invite(folder, uses=2)
        context = multiprocessing.get_context("fork")
        barrier, results = context.Barrier(4), context.Queue()

        def admit() -> None:
            mine = NetworkFolder(folder.path)
            barrier.wait()
            for _ in range(3):
                try:
                    results.put(str(join(mine, Identity.generate(), token).node))
                except Refused as refused:
                    results.put(refused.reason.value)

        processes = [context.Process(target=admit) for _ in range(4)]
        for process in processes:
            process.start()
        outcomes = [results.get(timeout=60) for _ in range(12)]
        for process in processes:
            process.join()
        assert sorted(outcomes) == ["1", "2", *["used_up"] * 10]

    def test_bootstrap_is_the_founder(self, folder):
        (bootstrap,) = folder.bootstrap()
        assert (bootstrap.address, bootstrap.curve_key) == ("192.0.2.1:7600", FOUNDER.curve_public)

    def test_without_a_founder_there_is_no_way_in(self, tmp_path):
        folder = NetworkFolder.create(tmp_path / "network", "demo", EXPERIMENT_TEXT, 4, "h:1")
        with pytest.raises(ConfigError, match="has no founder"):
            folder.bootstrap()


class TestRotating:
    def test_a_new_key_signs(self, folder):
        old = Identity.load(folder.path / KEY)
        succession = folder.rotate(NOW_S)
        new = Identity.load(folder.path / KEY)
        assert (succession.old_key, succession.new_key) == (old.signing_public, new.signing_public)
        join(folder, ALICE, invite(folder)).check(new.signing_public)
        assert sorted(path.name for path in folder.path.glob("admission*")) == [KEY]

    def test_other_processes_follow(self, folder):
        other = NetworkFolder(folder.path)
        token = invite(other)
        folder.rotate(NOW_S)
        join(other, ALICE, token).check(Identity.load(folder.path / KEY).signing_public)

    def test_a_crash_before_it_is_written_down_changes_nothing(self, folder):
        Identity.generate().save(folder.path / "admission.key.next")
        again = NetworkFolder(folder.path)
        old = Identity.load(folder.path / KEY)
        join(again, ALICE, invite(again)).check(old.signing_public)
        again.rotate(NOW_S)
        assert Identity.load(folder.path / KEY).signing_public != old.signing_public

    def test_a_crash_after_it_is_written_down_is_made_good(self, folder, monkeypatch):
        def crash(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(NetworkFolder, "_take_next_key", crash)
            with pytest.raises(KeyboardInterrupt):
                folder.rotate(NOW_S)
        again = NetworkFolder(folder.path)
        certificate = join(again, ALICE, invite(again))
        certificate.check(again.seen().lineage.current)
        assert Identity.load(folder.path / KEY).signing_public == again.seen().lineage.current


class TestLedger:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        path = tmp_path / "ledger.jsonl"
        Ledger.create(path, FIRST)
        return path

    def read(self, path: Path) -> list:
        entries: list = []
        Ledger(path, entries.append)
        return entries

    def test_what_is_appended_is_read(self, path):
        ledger = Ledger(path, lambda entry: None)
        ledger.append(MORE)
        ledger.append(MORE)
        assert self.read(path) == [FIRST, MORE, MORE]

    def test_others_see_it_when_they_look(self, path):
        seen: list = []
        reader = Ledger(path, seen.append)
        Ledger(path, lambda entry: None).append(MORE)
        assert seen == [FIRST]
        reader.refresh()
        reader.refresh()
        assert seen == [FIRST, MORE]

    def test_every_crash_while_writing_leaves_what_was_there(self, path):
        before = path.read_bytes()
        line = msgspec.json.encode(MORE) + b"\n"
        for written in range(len(line)):
            path.write_bytes(before + line[:written])
            assert self.read(path) == [FIRST]
            Ledger(path, lambda entry: None).append(MORE)
            assert self.read(path) == [FIRST, MORE]
            path.write_bytes(before)

    def test_a_full_disk_leaves_what_was_there(self, path, monkeypatch):
        ledger = Ledger(path, lambda entry: None)

        def full(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="No space left on device; make room"):
                ledger.append(MORE)
        assert self.read(path) == [FIRST]
        ledger.append(MORE)
        assert self.read(path) == [FIRST, MORE]

    def test_a_line_that_is_none_is_named(self, path):
        with path.open("ab") as file:
            file.write(b'{"type":"invited"}\n')
        with pytest.raises(Corrupt, match=r"ledger\.jsonl: line 2 is no entry"):
            self.read(path)

    def test_one_that_shrinks_is_noticed(self, path):
        ledger = Ledger(path, lambda entry: None)
        path.write_bytes(b"")
        with pytest.raises(Corrupt, match="has become shorter"):
            ledger.refresh()

    def test_one_that_goes_is_noticed(self, path):
        ledger = Ledger(path, lambda entry: None)
        path.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            ledger.refresh()
        with pytest.raises(ConfigError, match="cannot be written"), ledger.locked():
            pass


class TestPrivateFiles:
    def test_a_new_one_is_private(self, tmp_path):
        write_private(tmp_path / "file", b"content")
        check_private(tmp_path / "file")
        assert mode(tmp_path / "file") == 0o600

    def test_it_is_never_overwritten(self, tmp_path):
        write_private(tmp_path / "file", b"content")
        with pytest.raises(ConfigError, match="File exists"):
            write_private(tmp_path / "file", b"other")
        assert (tmp_path / "file").read_bytes() == b"content"

    @pytest.mark.parametrize("open_mode", [0o601, 0o640, 0o604, 0o660])
    def test_any_openness_is_refused(self, tmp_path, open_mode):
        write_private(tmp_path / "file", b"")
        (tmp_path / "file").chmod(open_mode)
        with pytest.raises(ConfigError, match=f"mode {open_mode:o}"):
            check_private(tmp_path / "file")


class TestAudit:
    def lines(self, path: Path) -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_it_says_who_did_what(self, tmp_path):
        audit = Audit(tmp_path / AUDIT)
        audit.record(NOW_S, "operator", "invite", "token 12")
        audit.record(NOW_S + 1.5, "192.0.2.9", "admit", "no such token", "unknown_token")
        assert self.lines(tmp_path / AUDIT) == [
            {
                "time": "2027-01-15T08:00:00.000+00:00",
                "actor": "operator",
                "action": "invite",
                "object": "token 12",
                "result": "done",
                "reason": "",
            },
            {
                "time": "2027-01-15T08:00:01.500+00:00",
                "actor": "192.0.2.9",
                "action": "admit",
                "object": "no such token",
                "result": "refused",
                "reason": "unknown_token",
            },
        ]
        assert mode(tmp_path / AUDIT) == 0o600

    def test_strangers_cannot_fill_the_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(auditing, "MOST_REFUSALS", 3)
        audit = Audit(tmp_path / AUDIT)
        for _ in range(10):
            audit.record(NOW_S, "stranger" * 1000, "admit", "x" * 10_000, "rate")
        audit.record(NOW_S, "operator", "invite", "token 12")
        audit.record(NOW_S + 3600, "stranger", "admit", "x", "rate")
        lines = self.lines(tmp_path / AUDIT)
        assert [line["result"] for line in lines] == ["refused"] * 3 + ["done", "refused"]
        assert len(lines[0]["object"]) == len(lines[0]["actor"]) == 200

    def test_what_a_stranger_says_stays_on_its_line(self, tmp_path):
        Audit(tmp_path / AUDIT).record(NOW_S, "a\nb", "admit", '"}\n{"x": 1\x1b[2J', "rate")
        (line,) = self.lines(tmp_path / AUDIT)
        assert line["actor"] == "a\nb"


def test_threads_that_read_at_once_count_every_line_once(folder):
    """An admitting node's loop looks at the folder while a thread of it admits somebody."""
    done, troubles = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            try:
                folder.seen()
            except StarlingError as error:
                troubles.append(error)
                return

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            invite(folder)
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert troubles == []
    assert len(folder.seen().invitations) == len(NetworkFolder(folder.path).seen().invitations) == 100
