"""What ``import node`` promises to authors of protocols, and what it costs."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import node
import node.testing

ROOT = Path(__file__).parent.parent
PROMISED = {
    "LEAST_SENDERS",
    "Chunks",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Future",
    "Gathered",
    "Message",
    "Mod",
    "Observer",
    "OneShot",
    "Op",
    "Part",
    "Protocol",
    "ProtocolError",
    "Ref",
    "Row",
    "Sent",
    "ShownKey",
    "Spec",
    "StarlingError",
    "TopologySection",
    "TransportError",
    "Unreachable",
    "on",
    "op",
    "scale",
    "shift",
}
"""Protocols of others depend on these: adding one is easy, taking one away is not."""

HEAVY = ["torch", "zmq", "aiohttp", "matplotlib", "sklearn", "typer", "cryptography", "psutil", "datasets", "uvloop"]


def test_exactly_what_is_promised_is_exported():
    assert set(node.__all__) == PROMISED
    assert len(node.__all__) == len(PROMISED)


@pytest.mark.parametrize("module", [node, node.testing], ids=lambda module: module.__name__)
def test_exports_are_sorted_documented_and_there(module):
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name))  # constants first
    assert inspect.getdoc(module)
    for name in module.__all__:
        member = getattr(module, name)
        described = member.solve if isinstance(member, node.Op) else member
        assert isinstance(member, node.Op) or inspect.getdoc(described), f"{name} has no docstring"


def test_public_methods_of_what_is_exported_are_documented():
    for name in sorted(PROMISED):
        for part, member in vars(getattr(node, name)).items() if inspect.isclass(getattr(node, name)) else ():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not part.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                assert inspect.getdoc(plain), f"{name}.{part} has no docstring"


def test_names_in_the_protocols_readme_exist():
    """Every ``ctx.name`` and every ``from node import ...`` of the guide is real."""
    readme = ROOT / "protocols" / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert "README" in node.__doc__
    for line in re.findall(r"^from node import (.+)$", text, re.MULTILINE):
        assert {name.strip() for name in line.split(",")} <= PROMISED, line
    for name in set(re.findall(r"\bctx\.([a-z_]+)", text)):
        assert hasattr(node.Context, name), f"ctx.{name} of the guide does not exist"


@pytest.fixture(scope="module")
def loaded():
    """The modules that a fresh interpreter holds after importing what a protocol imports."""
    program = "import sys, node, node.testing, protocols.dpsgd; print(*sorted(sys.modules), sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("module", HEAVY)
def test_importing_node_does_not_import(module, loaded):
    """A protocol, and its simulation without tensors, start in a fraction of a second."""
    assert module not in loaded


def test_nothing_of_either_end_is_imported(loaded):
    ends = ("node.live", "node.learn", "node.cli", "node.experiment")
    assert [name for name in sorted(loaded) if name.startswith(ends)] == []
