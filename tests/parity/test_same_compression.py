"""Models that are packed on their way: the same bytes and the same bits in both worlds."""

from __future__ import annotations

import pytest

from launch import experiment

CASES = {
    "bf16": {"mods": [{"use": "bf16"}]},
    "int8": {"mods": [{"use": "int8"}]},
    "top-k": {"mods": [{"use": "top-k", "share": 0.05, "refresh_every": 3}]},
    "random-k": {"mods": [{"use": "random-k"}]},
    "server": {"mods": [{"use": "top-k"}], "nodes": 4, "protocol": {"use": "fedavg", "rounds": 3}},
    "parts": {"mods": [{"use": "top-k"}], "protocol": {"use": "fedper", "rounds": 3}},
}


def summary(starling, folder, clock, tables):
    tables = {"protocol": {"use": "dpsgd", "rounds": 4}, "nodes": 4, **tables}
    command = starling.start(folder, "run", experiment(folder, **tables), "--clock", clock, "--out", "run", "--quiet")
    try:
        assert (command.wait(), command.err) == (0, "")
    finally:
        command.end()
    return command.summary


@pytest.mark.parametrize("name", CASES)
def test_real_and_simulated_nodes_pack_alike(starling, tmp_path, name):
    real, virtual = (summary(starling, tmp_path / clock, clock, CASES[name]) for clock in ("real", "virtual"))
    for same in ("metrics", "bytes_sent", "messages"):
        assert real[same] == virtual[same]
