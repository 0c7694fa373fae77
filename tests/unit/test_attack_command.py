"""``starling attack``, and what a report shows of attackers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog

from launch import experiment
from node.attack.kinds import KINDS
from node.cli import leaks
from node.cli.attack import findings, with_attacker
from node.cli.main import main
from node.cli.runs import load_run
from node.cli.summary import Attacks
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.identity import Identity
from node.trust.certificate import Role
from node.trust.token import Bootstrap, Token

FINAL = {
    "nodes": {"0": {}, "1": {}},
    "mean": {"membership_auc": 0.75, "membership_tpr_1pct": None},
    "worst": {"node": 1, "membership_auc": 0.875, "membership_tpr_1pct": None},
    "groups": {"0": {"nodes": 1, "membership_auc": 0.625}, "1": {"nodes": 1, "membership_auc": 0.875}},
    "roc": {"fpr": [0.01, 1.0], "tpr": [0.1, 1.0]},
    "epsilon_at_least": 2.5,
    "delta": 1e-5,
}


@pytest.fixture
def starling(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder; gives its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    yield run
    structlog.reset_defaults()


@pytest.fixture
def small(tmp_path):
    tables = {"nodes": 4, "topology": {"kind": "full"}, "protocol": {"use": "dpsgd", "rounds": 2}}
    return tmp_path / experiment(tmp_path, **tables)


# The command


def test_an_attack_tells_what_it_has_measured(starling, small, tmp_path):
    command = ("attack", "membership", "--experiment", small, "--clock", "virtual", "--out", "run", "--quiet")
    code, out, err = starling(*command, "--node", 2, "--set", "attack.every=1", "--set", "training.local_steps=9")
    assert (code, err) == (0, "")
    assert "6 messages of 2 rounds attacked:" in out
    assert "final models of 4 nodes attacked (worst: node " in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {message["attacker"] for message in summary["attacks"]["messages"]} == {2}
    again = load_run(tmp_path / "run").config
    assert again.attackers[0].options == {"every": 1}
    assert again.training.local_steps == 9


def test_json_is_the_summary_and_nothing_else(starling, small):
    command = ("attack", "linkability", "--experiment", small, "--clock", "virtual", "--out", "run", "--json")
    code, out, err = starling(*command)
    assert (code, err) == (0, "")
    assert json.loads(out)["attacks"]["linkability"] == {"chance": 1 / 3}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["membership"], "--experiment: is missing"),
        (["membership", "--join", "x"], "--join: neither an invitation nor a file that can be read"),
        (["membership", "--join", "x", "--set", "seed=2"], "--set: with --join the experiment is the network's"),
        (
            ["sight", "--experiment", "digits-gossip"],
            "attackers[0].kind: no attack is called 'sight'; known: attribute",
        ),
        (["membership", "--experiment", "digits-gossip", "--set", "attack.evry=2"], "did you mean 'every'?"),
        (["membership", "--experiment", "digits-gossip", "--set", "attack=2"], "write attack.KEY=VALUE"),
        (["membership", "--experiment", "digits-gossip", "--node", "16"], "there is no node 16; allowed: 0 to 15"),
        (["membership", "--experiment", "digits"], "no experiment is called 'digits'"),
    ],
)
def test_what_is_wrong_is_one_line(starling, arguments, part):
    code, out, err = starling("attack", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err


def test_the_list_of_attacks_is_the_registry(starling):
    code, out, _ = starling("list", "attacks", "--json")
    assert code == 0
    assert json.loads(out) == {"attacks": {name: kind.meaning for name, kind in KINDS.items()}}


def test_an_attacker_comes_to_those_that_are_there():
    before = ExperimentConfig.model_validate({"attackers": [{"kind": "membership", "every": 3}]})
    after = with_attacker(before, "byzantine", [1, 2], {"attack": "ipm"})
    assert after.attackers[0] == before.attackers[0]
    assert (after.attackers[1].kind, after.attackers[1].nodes) == ("byzantine", (1, 2))
    assert after.attackers[1].options == {"attack": "ipm"}
    assert after.model_dump(exclude={"attackers"}) == before.model_dump(exclude={"attackers"})


def test_help_says_how_long_one_that_joins_runs(starling):
    code, out, _ = starling("attack", "--help")
    assert code == 0
    assert "until SIGTERM" in " ".join(out.replace("│", " ").split())


def test_findings_are_lines():
    messages = [
        {"round": round, "attacker": 0, "victim": 1, "a_auc": value, "b": None}
        for round, value in ((0, 0.5), (0, 0.7), (3, 0.9))
    ]
    lines = list(findings({"messages": messages, "final": FINAL, "byzantine": {"attack": "ipm", "honest": 0.51234}}))
    assert lines[0] == "3 messages of 2 rounds attacked:"
    assert lines[1].split() == ["a_auc", "mean", "0.7000", "lowest", "0.5000", "highest", "0.9000"]
    assert lines[2] == "final models of 2 nodes attacked (worst: node 1):"
    assert lines[3].split() == ["membership_auc", "mean", "0.7500", "worst", "node", "0.8750"]
    assert lines[4:6] == [f"  group {g} (1 nodes): membership_auc {a}" for g, a in ((0, "0.6250"), (1, "0.8750"))]
    assert lines[6] == "  an attack on them proves epsilon >= 2.5 at delta 1e-05"
    assert lines[7] == "byzantine: attack ipm, honest 0.5123"
    assert list(findings({})) == []


# The report


@pytest.fixture
def run(starling, small, tmp_path):
    """A run with attackers, read back; ``change`` rewrites keys of its summary first."""
    code, _, err = starling("run", small, "--clock", "virtual", "--out", "run", "--quiet")
    assert (code, err) == (0, "")

    def read(**changed):
        path = tmp_path / "run" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return load_run(tmp_path / "run")

    return read


def test_a_run_without_attackers_has_no_section(run):
    assert leaks.attacks([run()]) == ""


def test_final_models_groups_and_the_curve_are_shown(run):
    shown = leaks.attacks([run(attacks={"messages": [], "final": FINAL})])
    for part in ("mean of nodes", "the worst, node 1", "mean of group 0", "0.875", "n/a", "Final models: ROC", "<svg"):
        assert part in shown
    assert "outcome bad" not in shown


def test_intervals_of_messages_and_final_models_are_shown(run):
    messages = {"membership_auc": {"estimate": 0.625, "low": 0.5, "high": 0.75}}
    final = {"membership_tpr_1pct": {"estimate": 0.0625, "low": 0.03125, "high": 0.09375}}
    shown = leaks.attacks([run(attacks={"pooled": messages, "final": FINAL | {"pooled": final}})])
    for part in ("all messages, mean", "0.625 [0.500, 0.750]", "final models, all samples", "0.062 [0.031, 0.094]"):
        assert part in shown
    assert "all messages" not in leaks.attacks([run(attacks={"pooled": {}, "final": FINAL})])


def test_messages_of_a_single_victim_are_shown_without_interval(run):
    pooled = {"membership_auc": {"estimate": 0.625, "low": None, "high": None}}
    shown = leaks.attacks([run(attacks={"pooled": pooled})])
    assert "<td>all messages, mean</td><td>0.625</td><td>n/a</td>" in shown
    messages = [{"round": 0, "attacker": 0, "victim": 1, "membership_auc": 0.625}]
    (line,) = [line for line in findings({"messages": messages, "pooled": pooled}) if "membership_auc" in line]
    assert line.endswith("highest   0.6250")


def test_findings_of_several_tables_are_told_one_after_the_other():
    lies = {"byzantine": {"attack": "ipm"}, "byzantine#2": {"attack": "alie"}}
    lines = list(findings({"final": FINAL, "final#2": FINAL, **lies}))
    assert [line for line in lines if line.startswith("final models of")] == [lines[0]] * 2
    assert lines[-2:] == ["byzantine: attack ipm", "byzantine#2: attack alie"]


@pytest.mark.parametrize(("accounted", "alarms"), [(2.0, 1), (2.5, 0), (None, 0)])
def test_more_than_was_accounted_is_an_alarm(run, accounted, alarms):
    privacy = {"mechanism": "record", "epsilon": {"mean": accounted, "max": accounted}}
    shown = leaks.attacks([run(attacks={"final": FINAL}, privacy=privacy)])
    assert shown.count("proves epsilon &gt;= 2.5") == alarms


def test_courses_are_drawn_over_rounds(starling, small, tmp_path):
    command = ("attack", "membership", "--experiment", small, "--clock", "virtual", "--out", "a", "--quiet")
    assert starling(*command, "--set", "attack.every=1")[0] == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Membership inference: AUC" in page
    assert "from/" not in page


def test_pictures_are_drawn_and_broken_ones_refused(run, tmp_path):
    found = run(attacks={"messages": []})
    path = tmp_path / "run" / "pictures.parquet"
    images = {name: np.linspace(0, 1, 2 * 12).reshape(2, 12).tolist() for name in ("reconstructed", "original")}
    pq.write_table(pa.table({"shape": [[3, 2, 2]] * 2, **images}), path)
    assert "Reconstructed images" in leaks.attacks([found])
    pq.write_table(pa.table({"shape": [[5, 5, 5]] * 2, **images}), path)
    with pytest.raises(ConfigError, match=r"pictures\.parquet: cannot be read"):
        leaks.attacks([found])


def test_a_summary_that_is_not_ours_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"summary\.json: attacks\.final\.mean"):
        run(attacks={"final": FINAL | {"mean": 3}})
    assert Attacks.model_validate({"messages": [{"round": 0}], "more": 1}).final is None


def test_an_invitation_for_others_is_no_attackers(starling, tmp_path):
    key = Identity.generate()
    bootstrap = (Bootstrap("127.0.0.1:9", key.curve_public),)
    token = Token(bytes(20), key.signing_public, bootstrap, Role.learner, 0, 1, bytes(8), bytes(16))
    code, out, err = starling("attack", "membership", "--join", token.to_text(), "--state", str(tmp_path / "state"))
    assert (code, out) == (2, "")
    assert "for a learner; an attacker needs an invitation made with --role attacker" in err
    assert not (tmp_path / "state").exists()
