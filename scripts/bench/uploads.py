"""What an aggregator holds of a thousand one-shot uploads: a whole simulation for each algorithm, in its own process.

    python scripts/bench/uploads.py [--clients N] [--check] [ALGORITHM ...]

Of algorithms that stream, uploads are added up as they come, and at most twice ``protocol.window`` of them are held; of
others all are. Prints for each: whether it streams, the bytes of one upload and of all of them, the most that was held
at a time, the size of the result, the peak memory of the process that simulates everybody, and its time. ``--check``
exits with 1 where a client is missing, or where one that streams has held more than that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from node.cli.figures import size

ALGORITHMS = ("average", "weighted-average", "ensemble-probabilities", "ridge", "regmean")
EACH, TEST = 20, 500
"""Samples of a client, and to test on."""
MOST_UPLOADS = 2 * 64 + 8
"""Uploads that may be held where they are added up: twice ``protocol.window``, and a few in place of the sums."""
_EXPERIMENT = """
name = "uploads"
nodes = {nodes}
clock = "virtual"
[protocol]
use = "oneshot"
algorithm = "{algorithm}"
[data]
name = "synthetic"
samples = {samples}
test_fraction = {test_fraction}
noise = 2.0
[model]
name = "mlp"
hidden = [100]
[training]
lr = 0.05
local_epochs = 2
[executor]
kind = "batched"
"""


def run(algorithm: str, clients: int) -> dict[str, Any]:
    """Simulate all clients and the aggregator; gives the summary."""
    samples = EACH * clients + TEST
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "uploads.toml"), Path(folder, "out")
        filled = {"nodes": clients + 1, "samples": samples, "test_fraction": TEST / samples}
        file.write_text(_EXPERIMENT.format(algorithm=algorithm, **filled))
        command = [sys.executable, "-m", "node.cli.main", "run", str(file), "--quiet", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{algorithm}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def row(summary: dict[str, Any]) -> list[str]:
    """What is told of one run."""
    own, metrics = summary["oneshot"], summary["metrics"]
    held, result, uploads = (int(metrics[name]["mean"]) for name in ("held_bytes", "result_bytes", "uploads"))
    total, most = (sum(kind[which] for kind in own["uploaded_bytes"].values()) for which in ("total", "most"))
    told = [own["algorithm"], "yes" if own["streams"] else "no", str(uploads), size(most), size(total), size(held)]
    told += [size(result), size(summary["peak_rss_bytes"]), f"{summary['wall_s']:.1f} s"]
    return [*told, f"{100 * metrics['accuracy']['mean']:.1f} %"]


def is_wrong(summary: dict[str, Any], clients: int) -> bool:
    """Whether somebody is missing, or more was held than need be."""
    own, metrics = summary["oneshot"], summary["metrics"]
    most = sum(kind["most"] for kind in own["uploaded_bytes"].values())
    is_full = own["streams"] and metrics["held_bytes"]["mean"] > MOST_UPLOADS * most
    return bool(own["missing"]) or metrics["uploads"]["mean"] != clients or is_full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", default=ALGORITHMS, metavar="ALGORITHM")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--check", action="store_true", help="exit with 1 where something is wrong")
    asked = parser.parse_args()
    header = ["algorithm", "streams", "uploads", "one", "all", "held", "result", "peak RSS", "wall", "accuracy"]
    print("".join(f"{name:<24}" if not i else f"{name:>11}" for i, name in enumerate(header)))
    wrong = []
    for algorithm in asked.algorithms:
        summary = run(algorithm, asked.clients)
        print("".join(f"{cell:<24}" if not i else f"{cell:>11}" for i, cell in enumerate(row(summary))), flush=True)
        if is_wrong(summary, asked.clients):
            wrong.append(algorithm)
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    sys.exit(int(asked.check and bool(wrong)))


if __name__ == "__main__":
    main()
