"""A scripted dropout in a secure sum: real processes recover the same sums as the simulation, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch import experiment

SILENT = """
from node import Mod
from protocols.secagg import Masked, Opened


class Silent(Mod):
    '''In round 1 a part is missing everywhere, and in round 2 an opening: all nodes wait for as long.'''

    def outgoing(self, ctx, to, message):
        kind = {1: Masked, 2: Opened}.get(getattr(message, "round", 0))
        return None if kind and isinstance(message, kind) and to == (ctx.me + 1) % 5 else message
"""


def arm(starling, folder: Path, clock: str, noise: str):
    tables = {
        "nodes": 5,
        "topology": {"kind": "full"},
        "protocol": {"use": "secagg", "rounds": 4, "deadline_s": 4.0},
        "privacy": {"noise": noise},
        "mods": [{"use": "silent:Silent"}],
        "record": {"models": True},
    }
    file = experiment(folder, **tables)
    (folder / "silent.py").write_text(SILENT)
    command = starling.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    try:
        assert (command.wait(), command.err) == (0, "")
    finally:
        command.end()
    return command


def senders(command) -> dict[int, list[float]]:
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "senders")])
    found: dict[int, list[float]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["node"], row["round"])):
        found.setdefault(row["node"], []).append(row["value"])
    return found


@pytest.mark.parametrize("noise", ["seeded", "secret"])
def test_real_nodes_recover_the_sums_of_the_simulation(starling, tmp_path, noise):
    """With the same masks, and with masks that nobody can repeat: nothing is left of them."""
    real = arm(starling, tmp_path / "real", "real", noise)
    virtual = arm(starling, tmp_path / "virtual", "virtual", "seeded")
    assert senders(real) == senders(virtual) == {node: [4, 3, 4, 4] for node in range(5)}
    assert len(real.models()) == 5
    assert real.models() == virtual.models()
    assert len(set(virtual.models().values())) == 5
