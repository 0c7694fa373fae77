"""Adapters served by real processes: the same requests, at the same nodes, with as many tokens as in a simulation."""

import pyarrow.parquet as pq

from launch import experiment

TABLES = {
    "nodes": 4,
    "protocol": {
        "use": "serving",
        "storage": 2,
        "adapters": 6,
        "routing": "rendezvous",
        "cache_bytes": 1_000_000,
        "model": {"layers": 4, "hidden": 64, "targets": 2, "chunk_bytes": 4096},
        "times": {"prefill_token_s": 1e-5, "decode_s": 1e-3},
        "workload": {
            "requests": 30,
            "prompt_tokens": [10, 50],
            "output_tokens": [2, 12],
            "arrivals": {"rate_per_s": 30.0},
        },
    },
}


def arm(starling, folder, clock):
    file = experiment(folder, **TABLES)
    command = starling.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    try:
        assert (command.wait(), command.err) == (0, "")
    finally:
        command.end()
    columns = pq.read_table(folder / "run" / "metrics.parquet").to_pydict()
    rows = zip(columns["round"], columns["metric"], columns["value"], strict=True)
    kept = {"request/tokens", "request/node", "request/error"}
    return command.summary, sorted(row for row in rows if row[1] in kept)


def test_real_nodes_serve_what_simulated_ones_do(starling, tmp_path):
    real, real_rows = arm(starling, tmp_path / "real", "real")
    virtual, virtual_rows = arm(starling, tmp_path / "virtual", "virtual")
    assert real_rows == virtual_rows
    assert len(real_rows) == 3 * 30
    for summary in (real["serving"], virtual["serving"]):
        assert summary["served"] == summary["requests"] == 30
        assert summary["content_bytes"] > 0
    assert real["serving"]["sent_bytes"]["serving/data/1"] > real["serving"]["content_bytes"]
