"""``starling network`` as an operator types it: what it prints and leaves, and one line for every mistake."""

from __future__ import annotations

import json
import os
import stat
import time
import tomllib
from pathlib import Path

import pytest
import structlog

from node.cli.main import main
from node.daemon.nodefile import load_settings
from node.identity import Identity
from node.trust.certificate import Role
from node.trust.folder import NetworkFolder
from node.trust.refusal import Refused
from node.trust.request import Join
from node.trust.token import Token

SMALL = ["--set", "nodes=3", "--set", "topology.kind=full"]


@pytest.fixture
def starling(tmp_path, monkeypatch, capfd):
    """Runs ``starling network`` in an empty folder; gives its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["network", *map(str, arguments)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    yield run
    structlog.reset_defaults()


@pytest.fixture
def founded(starling) -> NetworkFolder:
    code, _, err = starling("create", "demo", *SMALL)
    assert (code, err) == (0, "")
    return NetworkFolder(Path("network"))


def assert_refused(outcome: tuple[int, str, str], *parts: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("starling: ")
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


def join(folder: NetworkFolder, text: str, identity: Identity | None = None):
    identity = identity or Identity.generate()
    with folder.authority() as authority:
        return authority.admit(Join.by(identity, Token.from_text(text)), identity.curve_public, time.time())


def shown(starling) -> dict:
    code, out, err = starling("show", "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


class TestCreate:
    def test_it_says_what_to_type_next(self, starling):
        code, out, err = starling("create", "demo", *SMALL)
        assert (code, err) == (0, "")
        network = NetworkFolder(Path("network"))
        assert network.settings.id in out
        assert "3 nodes of digits-gossip" in out
        assert "starling node --config network/node.toml" in out
        assert "starling network invite --folder network" in out
        assert "only this machine reaches 127.0.0.1:7600" in out

    @pytest.mark.parametrize(
        ("sets", "deadline_s"),
        [((), 10.0), (("protocol.deadline_s=3",), 3.0), (("protocol.deadline_s=0",), 0.0)],
        ids=["none", "some", "for ever"],
    )
    def test_no_round_waits_for_ever_unless_that_is_asked_for(self, starling, sets, deadline_s):
        code, out, _ = starling("create", *SMALL, *[word for each in sets for word in ("--set", each)])
        assert code == 0
        assert ("no round waits longer than 10 s" in out) == (not sets)
        assert tomllib.loads(NetworkFolder(Path("network")).experiment)["protocol"]["deadline_s"] == deadline_s

    def test_what_no_node_could_start_with_is_no_network(self, starling):
        assert_refused(starling("create", "demo", "--set", "nodes=3"), "topology", "at least 5")
        assert not Path("network").exists()

    def test_everything_in_it_is_private(self, founded):
        for path in [founded.path, *founded.path.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_its_experiment_is_the_effective_one(self, founded):
        values = tomllib.loads(founded.experiment)
        assert (values["name"], values["nodes"], values["clock"]) == ("digits-gossip", 3, "real")

    def test_its_first_node_can_be_started(self, founded):
        settings = load_settings(founded.path / "node.toml", {})
        assert settings.listen == "127.0.0.1:7600"
        assert settings.network == founded.path.resolve()
        assert settings.state == founded.path.resolve() / "state"
        identity = Identity.load(settings.state / "keys" / "node.key")
        (certificate,) = founded.seen().newest()
        assert certificate.binds(identity)
        assert (certificate.node, certificate.role) == (0, Role.learner)

    def test_addresses_and_names_are_taken_over(self, starling):
        address = ["--listen", "0.0.0.0:7700", "--advertise", "[2001:db8::1]:7701"]
        code, out, _ = starling("create", "lab", "--folder", "here", *address, "--json", *SMALL)
        assert code == 0
        facts = json.loads(out)
        network = NetworkFolder(Path("here"))
        assert facts["id"] == network.settings.id
        assert (network.settings.name, network.settings.admission) == ("lab", "[2001:db8::1]:7701")
        assert load_settings(Path("here/node.toml"), {}).advertise == "[2001:db8::1]:7701"

    def test_its_name_is_the_experiments_otherwise(self, starling):
        starling("create", *SMALL)
        assert NetworkFolder(Path("network")).settings.name == "digits-gossip"

    def test_an_open_one_says_so_and_how_to_come(self, starling):
        code, out, _ = starling("create", "--open", *SMALL)
        assert code == 0
        text = out.split("who has ")[1].strip()
        assert Token.from_text(text).secret is None
        assert join(NetworkFolder(Path("network")), text).role is Role.learner

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["--experiment", "digits-gosip"], ["no experiment is called", "digits-gossip"]),
            (["--experiment", "missing.toml"], ["missing.toml", "cannot be read"]),
            (["--set", "nodes=0"], ["nodes"]),
            (["--listen", "nonsense"], ["--listen", "host:port"]),
            (["--listen", "127.0.0.1:99999"], ["--listen", "not an address"]),
            (["--listen", "0.0.0.0:7600"], ["--advertise", "every address"]),
            (["--listen", "127.0.0.1:0"], ["--listen", "port 0"]),
            (["--advertise", "0.0.0.0:7600"], ["--advertise"]),
            (["two words"], ["name"]),
        ],
    )
    def test_mistakes_are_one_line_and_leave_nothing(self, starling, arguments, parts):
        assert_refused(starling("create", *arguments), *parts)
        assert not Path("network").exists()

    def test_a_folder_that_is_not_empty_is_left_alone(self, starling, founded):
        before = {path: path.read_bytes() for path in founded.path.rglob("*") if path.is_file()}
        assert_refused(starling("create", "other"), "network: is not empty")
        assert {path: path.read_bytes() for path in founded.path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("founded")
class TestInvite:
    def test_the_token_alone_is_on_stdout(self, starling):
        code, out, err = starling("invite")
        assert code == 0
        token = Token.from_text(out)
        assert out == token.to_text() + "\n"
        assert (token.role, token.uses) == (Role.learner, 1)
        assert token.bootstrap[0].address == "127.0.0.1:7600"
        assert token.id.hex() in err
        assert token.to_text() not in err

    def test_it_is_what_was_asked_for(self, starling):
        began_s = int(time.time())
        code, out, err = starling("invite", "--role", "storage", "--expires", "30m", "--uses", 5, "--json")
        assert (code, err) == (0, "")
        facts = json.loads(out)
        token = Token.from_text(facts["token"])
        assert (token.role, token.uses, facts["uses"], facts["id"]) == (Role.storage, 5, 5, token.id.hex())
        assert began_s + 1800 <= token.expires_s <= time.time() + 1800

    def test_one_can_join_with_it_once(self, starling, founded):
        _, out, _ = starling("invite")
        assert join(founded, out).node == 1
        with pytest.raises(Refused, match=r"^used_up"):
            join(founded, out)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["--role", "emperor"], ["--role emperor", "learner, storage, compute, attacker"]),
            (["--uses", "0"], ["--uses 0", "1 to"]),
            (["--uses", "2000000"], ["--uses"]),
            (["--expires", "tomorrow"], ["--expires tomorrow", "24h"]),
            (["--expires", "0h"], ["--expires 0h"]),
            (["--expires", "99999d"], ["ten years"]),
            (["--expires", "-1h"], ["--expires -1h"]),
            (["--folder", "elsewhere"], ["elsewhere", "No such file"]),
        ],
    )
    def test_mistakes_are_one_line(self, starling, arguments, parts):
        assert_refused(starling("invite", *arguments), *parts)

    @pytest.mark.parametrize("name", ["admission.key", "ledger.jsonl", "network.toml"])
    def test_a_missing_file_is_no_new_network(self, starling, founded, name):
        (founded.path / name).unlink()
        assert_refused(starling("invite"), name)
        assert not (founded.path / name).exists()

    def test_a_key_that_others_can_read_is_not_used(self, starling, founded):
        (founded.path / "admission.key").chmod(0o644)
        assert_refused(starling("invite"), "admission.key", "chmod 600")


@pytest.mark.usefixtures("founded")
class TestShow:
    def test_it_knows_who_is_there(self, starling, founded):
        _, text, _ = starling("invite", "--uses", 2)
        member = join(founded, text)
        facts = shown(starling)
        assert (facts["name"], facts["nodes"], facts["open"]) == ("demo", 3, False)
        (invitation,) = facts["invitations"]
        assert (invitation["used"], invitation["uses"], invitation["ended"]) == (1, 2, False)
        assert [(row["node"], row["role"], row["state"]) for row in facts["members"]] == [
            (0, "learner", "member"),
            (1, "learner", "member"),
        ]
        assert "token" not in facts
        code, out, err = starling("show")
        assert (code, err) == (0, "")
        assert "1 of 2 used, ends" in out
        assert f"node {member.node}" in out

    def test_it_shows_no_secret(self, starling, founded):
        _, text, _ = starling("invite")
        token = Token.from_text(text)
        shows = starling("show")[1] + starling("show", "--json")[1] + (founded.path / "ledger.jsonl").read_text()
        for secret in (token.secret.hex(), text.strip()):
            assert secret not in shows

    def test_an_open_network_shows_how_to_come(self, starling):
        starling("create", "--folder", "open", "--open", *SMALL)
        code, out, _ = starling("show", "--folder", "open", "--json")
        assert code == 0
        assert Token.from_text(json.loads(out)["token"]).id is None


@pytest.mark.usefixtures("founded")
class TestRevoke:
    @pytest.mark.parametrize("by", ["node", "peer"])
    def test_a_member_is_out(self, starling, founded, by):
        identity = Identity.generate()
        _, text, _ = starling("invite")
        join(founded, text, identity)
        row = shown(starling)["members"][1]
        code, out, err = starling("revoke", row[by], "--reason", "laptop lost")
        assert (code, err) == (0, "")
        assert f"peer {row['peer']} is revoked since" in out
        assert shown(starling)["members"][1]["state"] == "revoked"
        with pytest.raises(Refused, match=r"^revoked"):
            join(founded, starling("invite")[1], identity)

    @pytest.mark.parametrize(
        ("member", "parts"),
        [
            ("2", ["2: no node of that number"]),
            ("nobody", ["neither a node's number nor a peer's id"]),
            ("a" * 32, ["no member has id"]),
        ],
    )
    def test_whom_nobody_knows(self, starling, member, parts):
        assert_refused(starling("revoke", member), *parts)

    def test_a_reason_is_one_line(self, starling):
        assert_refused(starling("revoke", "0", "--reason", "two\nlines"), "--reason")


@pytest.mark.usefixtures("founded")
class TestRotate:
    def test_another_key_signs(self, starling, founded):
        before = shown(starling)["admission_key"]
        _, text, _ = starling("invite")
        code, out, err = starling("rotate")
        assert (code, err) == (0, "")
        after = shown(starling)["admission_key"]
        assert after != before
        assert after in out
        join(founded, text).check(bytes.fromhex(after))


def test_the_audit_knows_it_all(starling, founded):
    starling("invite")
    starling("rotate")
    starling("revoke", "0")
    lines = [json.loads(line) for line in (founded.path / "audit.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["create", "invite", "rotate", "revoke"]
    assert {line["result"] for line in lines} == {"done"}


def test_a_user_without_a_name_is_a_number(starling, founded, monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert starling("invite")[0] == 0
    assert json.loads((founded.path / "audit.jsonl").read_text().splitlines()[-1])["actor"] == f"user {os.getuid()}"


def test_help_needs_no_network(starling):
    code, out, _ = starling("--help")
    assert code == 0
    for command in ("create", "invite", "show", "revoke", "rotate"):
        assert command in out


def test_nothing_is_written_where_one_may_not(starling, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(starling("create", "--folder", os.fspath(tmp_path / "file" / "network")), "cannot be used")


def test_an_audit_that_cannot_be_written_takes_nothing_back(starling, founded, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node.trust.audit.Audit.record", full)
    code, out, err = starling("invite")
    assert (code, out.startswith("starling1_")) == (0, True)
    assert "starling: invite is done, but not in the audit: No space left on device\n" in err
