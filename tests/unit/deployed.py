"""What the tests of ``deploy/`` share: its files as data, and its shell scripts run without a node."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
from pathlib import Path

import typer
import yaml

from node.cli.main import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


@functools.cache
def documents(path: Path) -> tuple:
    return tuple(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def compose() -> dict:
    return documents(DEPLOY / "compose.yaml")[0]


def resources(kind: str) -> list[dict]:
    return [found for path in MANIFESTS for found in documents(path) if found["kind"] == kind]


def parse(words: list[str]) -> dict:
    """What the command line makes of the words after ``starling``; an exception for a command or option it has not."""
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        name, *words = words
        context = command.make_context(name, [name, *words], parent=context, resilient_parsing=True)
        command = command.commands[name]
    return command.make_context("starling", words, parent=context).params


def commands_in(text: str) -> list[list[str]]:
    """The starling commands of a shell script or unit, as words; continued lines are joined, and variables are 1."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\$\$?(\(\([^)]*\)\)|\{\w+\}|\w+)", "1", joined)
    found = re.findall(
        r"(?:^|[^\w/-])(?:/opt/starling/bin/)?starling ((?:node|network|status|peers|stop|doctor)\b[^|>;\n]*)", joined
    )
    return [shlex.split(words, comments=True) for words in found]


def pod(name: str) -> dict:
    (found,) = [found for found in resources("StatefulSet") if found["metadata"]["name"] == name]
    return found["spec"]["template"]["spec"]


@functools.cache
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [found for name, found in dockerfile() if name == instruction]


FAKE = """#!/bin/sh
echo "$*" >>"$LOG"
case "$1 $2" in
"network create") mkdir -p "$4"; [ "$FAIL" = create ] && exit 3; echo made >"$4/node.toml" ;;
"network invite") echo star1-secret; [ "$FAIL" = invite ] && exit 3 ;;
"node --join") if flock --nonblock "$5.lock" true; then echo "whoever wants can have its folder" >>"$LOG"; fi ;;
esac
exit 0
"""


def ran(tmp_path, script, **environ):
    """Run a script with a ``starling`` that only notes how it was called; gives status and calls."""
    for name in ("state", "invitation", "bin"):
        (tmp_path / name).mkdir(exist_ok=True)
        script = re.sub(rf"(?<=[=> ])/{name}/", f"{tmp_path}/{name}/", script)
    fake, log = tmp_path / "bin/starling", tmp_path / "log"
    fake.write_text(FAKE)
    fake.chmod(0o700)
    log.write_text("")
    path = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "LOG": str(log)}
    ended = subprocess.run(["/bin/sh", "-euc", script], env={**path, **environ}, capture_output=True, timeout=20)
    return ended.returncode, [line.split() for line in log.read_text().splitlines()]
