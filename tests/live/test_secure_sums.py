"""Secure aggregation among real processes: secret keys, the same sums, and a sender that dies in the middle."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from gate import Gate
from launch import experiment

DYING = """
from gate import Stop
from protocols.secagg import KIND


class InTheMiddle(Stop):
    def trained(self, ctx, before, after):
        pass

    def sent(self, ctx, to, message):
        if isinstance(message, KIND):
            super().trained(ctx, None, None)
"""
FORGER = """
from node import Mod
from protocols.greeting import Hello


class Forger(Mod):
    def outgoing(self, ctx, to, message):
        if isinstance(message, Hello):
            return Hello(round=message.round, public=bytes(range(32)), signature=message.signature)
        return message
"""
FIVE = {"nodes": 5, "topology": {"kind": "full"}, "record": {"models": True}}


def senders_of(command) -> dict[int, list[float]]:
    """How many models each sum of a node had, round by round."""
    rows = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "senders")]).to_pylist()
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["node"], row["round"])):
        found.setdefault(row["node"], []).append(row["value"])
    return found


def killed(start, tmp_path, kind: str, sendings: int, dropout: str):
    """A run of five nodes of which node 2 is killed when it has sent so many messages of a kind."""
    protocol = {"use": "secagg", "rounds": 6, "deadline_s": 5.0, "dropout": dropout}
    with Gate(tmp_path, 2, sendings) as gate:
        mods = [{**gate.mods[0], "use": "dying:InTheMiddle"}]
        file = experiment(tmp_path / "it", protocol=protocol, mods=mods, **FIVE)
        (tmp_path / "it" / "dying.py").write_text(DYING.replace("KIND", kind))
        shutil.copy(Path(__file__).with_name("gate.py"), tmp_path / "it")
        command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run")
        psutil.Process(gate.reached()).kill()
        assert command.wait() == 0
    summary = command.summary
    assert (summary["status"], summary["lost"]) == ("finished", {"2": "was killed by SIGKILL"})
    assert summary["privacy"]["insecure_keys"] is False
    assert sorted(command.models()) == [f"{node}.safetensors" for node in (0, 1, 3, 4)]
    assert command.leftovers() == []
    senders = senders_of(command)
    assert len(senders.pop(2, [])) <= 2
    for counts in senders.values():
        assert (len(counts), counts[:2], counts[-1]) == (6, [4, 4], 3)
    return [counts[2] for counts in senders.values()]


@pytest.mark.parametrize(("dropout", "left"), [("recover", 3), ("drop", 0)])
def test_a_killed_sender_costs_its_part_or_its_round_and_nothing_else(start, tmp_path, dropout, left):
    """It has said hello and is counted on when it dies: it tells four others who sends, in its third round none."""
    assert killed(start, tmp_path, "Senders", 9, dropout) == [left] * 4


def test_a_sender_that_is_killed_before_the_opening_is_in_the_sum_all_the_same(start, tmp_path):
    """Asked to open a sum in its third round, it dies; whoever asks has its part."""
    counts = killed(start, tmp_path, "Opened", 9, "recover")
    assert 4 in counts
    assert set(counts) <= {3, 4}


def test_a_key_that_its_sender_has_not_signed_is_left_out(start, tmp_path):
    """The forger's identity is in the roster, and its links are good; the key it shows is not its own."""
    mods = [{"use": "forger:Forger", "nodes": [3]}]
    file = experiment(tmp_path / "it", protocol={"use": "secagg", "rounds": 2, "deadline_s": 2.0}, mods=mods, **FIVE)
    (tmp_path / "it" / "forger.py").write_text(FORGER)
    command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run")
    assert command.wait() == 0
    senders = senders_of(command)
    senders.pop(3)
    assert senders == {node: [3, 3] for node in (0, 1, 2, 4)}
    told = (command.folder / "run" / "logs" / "node-0.log").read_text()
    assert "key refused" in told
    assert "node 3 has not signed what it is said to have said" in told


def test_sums_under_secret_keys_are_those_of_the_simulation(start, tmp_path):
    """Nobody can tell the masks, and nothing is left of them."""
    file = experiment(tmp_path / "real", protocol={"use": "secagg", "rounds": 3}, **FIVE)
    experiment(tmp_path / "virtual", protocol={"use": "secagg", "rounds": 3}, **FIVE)
    arms = [start(tmp_path / clock, "run", file, "--clock", clock, "--out", "run") for clock in ("real", "virtual")]
    assert [command.wait() for command in arms] == [0, 0]
    real, virtual = arms
    assert real.models() == virtual.models()
    assert [command.summary["privacy"]["insecure_keys"] for command in arms] == [False, True]
    assert set(senders_of(real)[0]) == {4}
