"""Real runs whose links are held to the experiment's rates: as slow as these say, and otherwise the same run."""

from __future__ import annotations

import pyarrow.parquet as pq

from launch import experiment

PROTOCOL = {"use": "dpsgd", "rounds": 3}
MODEL = {"name": "mlp", "hidden": [256]}  # about 77 kB


def run(start, folder, **network):
    """A real run of a few rounds that has finished."""
    file = experiment(folder, protocol=PROTOCOL, model=MODEL, network=network, record={"models": True})
    command = start(folder, "run", file, "--clock", "real", "--out", "run")
    assert command.wait() == 0
    assert command.leftovers() == []
    return command


def models(command):
    return {file.name: file.read_bytes() for file in sorted((command.folder / "run" / "models").iterdir())}


def test_a_round_takes_what_its_bytes_take_and_ends_with_the_same_models(start, tmp_path):
    free = run(start, tmp_path / "free")
    paced = run(start, tmp_path / "paced", pace=True, up_bps=8e6, down_bps=8e6, latency_s=0.02)
    assert len(models(free)) > 1
    assert models(paced) == models(free)
    assert (paced.summary["messages"], paced.summary["bytes_sent"]) == (
        free.summary["messages"],
        free.summary["bytes_sent"],
    )
    # What the busiest node sends at its rate, and the latency of each round; nothing can be faster.
    rows = pq.read_table(paced.folder / "run" / "metrics.parquet", filters=[("metric", "=", "bytes_sent")])
    busiest_bytes = max(rows["value"].to_pylist())
    assert paced.summary["time_s"] >= busiest_bytes * 8 / 8e6 + PROTOCOL["rounds"] * 0.02


def test_a_latency_that_real_links_cannot_be_held_to_is_one_line(start, tmp_path):
    network = {"pace": True, "latency_s": {"geography": "cities"}}
    file = experiment(tmp_path, protocol=PROTOCOL, model=MODEL, network=network)
    command = start(tmp_path, "run", file, "--clock", "real", "--out", "run")
    assert command.wait() == 2
    assert "network.latency_s" in command.err
    assert "Traceback" not in command.err
    assert command.leftovers() == []
