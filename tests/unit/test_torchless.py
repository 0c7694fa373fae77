"""What needs no learning imports no torch: a relay, a node of a store, and the commands that ask a running node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import node
from faces import TOKEN, served

HEAVY = ["torch", "sklearn", "scipy", "pandas"]
ROOT = Path(node.__file__).parent
UNUSED = ["sklearn", "scipy.special", "scipy.linalg", "networkx", "pyarrow", "PIL"]
"""What a learner on images has no use for before it writes its results: a third of its memory."""
TOLD = "import sys\nprint('heavy', *[name for name in {names} if name in sys.modules])"


def modules(package: str) -> list[str]:
    """All modules of a package of ours; what is in node/live/openai stands before a model, and computes."""
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if file.parent != ROOT / "live" / "openai"]
    names = [file.relative_to(ROOT.parent).with_suffix("").parts for file in files]
    return [".".join(part for part in name if part != "__init__") for name in names]


def heavy(code: str, names: Sequence[str] = HEAVY) -> list[str]:
    """The heavy packages that a fresh interpreter has imported after some code."""
    code = f"{code}\n{TOLD.format(names=names)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def after(*commands: Sequence[str]) -> list[str]:
    """The same after command lines, which all succeed."""
    run = "try:\n    main({words})\nexcept SystemExit as end:\n    assert not end.code"
    return heavy("\n".join(["from node.cli.main import main", *[run.format(words=[*words]) for words in commands]]))


@pytest.mark.parametrize("package", ["live", "store", "transfer", "trust", "membership"])
def test_roles_without_learning(package: str):
    assert len(modules(package)) > 2
    assert heavy(f"import {', '.join(modules(package))}") == []


def test_a_learner_does_without_what_only_others_need():
    prepared = "from node.daemon.process import load_experiment, prepare\nprepare(load_experiment('digits-gossip', {}))"
    assert heavy(prepared, UNUSED) == []
    assert heavy(prepared) == ["torch", "scipy"]  # whose parts come on first use


async def test_asking_a_node(tmp_path: Path):
    token = tmp_path / "admin.token"
    token.write_text(TOKEN)
    async with served() as (_, url):
        asked = [["status"], ["status", "--json"], ["peers"], ["stop", "--token-file", str(token)]]
        commands = [[*words, "--node", url] for words in asked]
        assert await asyncio.to_thread(after, *commands) == []


def test_keeping_a_network(tmp_path: Path):
    folder = ["--folder", str(tmp_path / "network")]
    after(["network", "create", "trial", *folder])  # may import anything: it tries the experiment out
    kept = ["invite", "--uses", "2"], ["show"], ["show", "--json"], ["rotate"]
    assert after(*[["network", *words, *folder] for words in kept]) == []


def test_help():
    assert after(["--help"], ["network", "--help"]) == []


def test_learning_is_told_apart():
    assert "torch" in heavy("import node.learn.tensors")
