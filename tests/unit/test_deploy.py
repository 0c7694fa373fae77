"""What ``deploy/`` ships: by the checkers of those who will read it, where these are there, and against this code."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path

import pytest

from deployed import DEPLOY, ROOT, arguments, commands_in, compose, dockerfile, parse, ran
from node.cli.main import WRONG_INPUT
from node.daemon.nodefile import Address, NodeFile
from node.daemon.process import _GONE_BY_S

UNIT = DEPLOY / "starling.service"
INSTALLED = "/opt/starling/bin/starling"
_VARIABLE = re.compile(r"STARLING_NODE__[A-Z_]+")

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


# Everything


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted(path for path in DEPLOY.rglob("*") if path.is_file())],
    ids=lambda path: path.name,
)
def test_settings_and_commands_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL))
    keys = {name.removeprefix("STARLING_NODE__").lower() for name in _VARIABLE.findall(text)} - {"key"}
    assert keys <= set(NodeFile.model_fields)
    for words in commands_in(text):
        parse(words)


def test_what_parses_commands_would_find_a_wrong_one():
    assert commands_in("exec starling node --config a/b # c\nx | starling network \\\n  show") == [
        ["node", "--config", "a/b"],
        ["network", "show"],
    ]
    assert parse(["node", "--join", "x", "--low-memory"])["low_memory"]
    for wrong in (["node", "--jion", "x"], ["network", "create", "--node", "3"]):
        with pytest.raises(Exception, match="No such option"):
            parse(wrong)
    with pytest.raises(KeyError):
        parse(["network", "invent"])


# The image


def test_the_image_runs_starling_as_a_user_with_a_fixed_number_on_a_slim_base():
    assert all(re.match(r"python:3\.1[1-9]-slim-\w+", base) for base in arguments("FROM"))
    assert arguments("USER") == ["10001:10001"]
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["starling"]
    assert parse(json.loads(arguments("CMD")[0]))["state"].startswith(arguments("VOLUME")[0])
    how = "docker buildx imagetools inspect " + arguments("FROM")[-1].split()[0]
    assert how in (DEPLOY / "Dockerfile").read_text(), "how to pin it by digest"
    names = [name for name, _ in dockerfile()]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))


def test_torch_comes_first_from_the_cpu_index_and_everything_from_the_lock():
    torch, own = (line for line in arguments("RUN") if line.startswith("pip install"))
    assert "--index-url https://download.pytorch.org/whl/cpu" in torch
    assert torch.split()[-1] == "torch"
    assert all("--constraint requirements.lock" in line for line in (torch, own))
    assert re.search(r"^torch==[0-9.]+$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_the_build_gets_all_that_the_wheel_is_made_of_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]}
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *packages} <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore


class _Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_a_node_that_is_well_from_one_that_is_not(status, healthy):
    _, _, command = arguments("HEALTHCHECK")[0].partition("CMD ")
    assert Address.parse(re.search(r"STARLING_NODE__ADMIN=(\S+)", " ".join(arguments("ENV")))[1]).port == 7601
    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        server.status = status
        threading.Thread(target=server.handle_request).start()
        words = [word.replace("7601", str(server.server_port)) for word in json.loads(command)]
        ended = subprocess.run([sys.executable, *words[1:]], capture_output=True, timeout=20)
    assert (ended.returncode == 0) == healthy


# Compose


def test_the_compose_file_follows_the_published_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    pytest.importorskip("check_jsonschema", reason="check-jsonschema, which has the schema, is not installed")
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validate(compose(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**compose(), "services": {"node": {"imgae": "starling"}}}, schema)


@pytest.mark.parametrize("name", ["bootstrap", "learner"])
def test_each_container_is_confined_and_gets_time_to_leave(name):
    service = compose()["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["stop_signal"] == "SIGTERM"
    assert int(service["stop_grace_period"].removesuffix("s")) > _GONE_BY_S
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_replicas_read_the_invitation_and_are_as_many_as_were_invited():
    learner, bootstrap = compose()["services"]["learner"], compose()["services"]["bootstrap"]
    assert learner["volumes"] == ["learners:/state", "invitation:/invitation:ro"]
    named = {volume.split(":")[0] for service in (learner, bootstrap) for volume in service["volumes"]}
    assert set(compose()["volumes"]) == named
    assert learner["deploy"]["replicas"] == bootstrap["environment"]["LEARNERS"]


# The scripts in them


def script_of(service: str) -> str:
    shell, flags, script = compose()["services"][service]["entrypoint"]
    assert (shell, flags) == ("/bin/sh", "-euc")
    return script.replace("$$", "$")


def test_the_bootstrap_founds_and_invites_once_and_then_only_runs(tmp_path):
    environ = {"LEARNERS": "4", "EXPERIMENT": "digits-gossip"}
    network, invitation = tmp_path / "state/network", tmp_path / "invitation/token"
    status, calls = ran(tmp_path, script_of("bootstrap"), **environ)
    assert status == 0
    assert [words[:2] for words in calls] == [["network", "create"], ["network", "invite"], ["node", "--config"]]
    assert parse(calls[0])["sets"] == ["nodes=5"]
    assert parse(calls[0])["experiment"] == "digits-gossip"
    assert parse(calls[1])["uses"] == 4
    assert parse(calls[2])["config"] == network / "node.toml"
    assert invitation.read_text() == "star1-secret\n"
    assert stat.S_IMODE(invitation.stat().st_mode) == 0o600
    assert ran(tmp_path, script_of("bootstrap"), **environ) == (0, [["node", "--config", str(network / "node.toml")]])


@pytest.mark.parametrize("what", ["create", "invite"])
def test_a_bootstrap_that_was_broken_off_begins_anew_and_shows_nothing_half_done(tmp_path, what):
    environ = {"LEARNERS": "4", "EXPERIMENT": "digits-gossip"}
    status, calls = ran(tmp_path, script_of("bootstrap"), **environ, FAIL=what)
    assert (status, calls[-1][1]) == (3, what)
    assert not (tmp_path / "invitation/token").exists()
    assert (tmp_path / "state/network").exists() == (what == "invite")
    status, calls = ran(tmp_path, script_of("bootstrap"), **environ)
    assert (status, calls[0][1], calls[-1][0]) == (0, what, "node")
    assert (tmp_path / "invitation/token").exists()


def test_each_replica_takes_the_first_folder_that_no_other_has(tmp_path):
    joins = [["node", "--join", f"{tmp_path}/invitation/token", "--state", f"{tmp_path}/state/{n}"] for n in range(4)]
    assert ran(tmp_path, script_of("learner")) == (0, [joins[1]])
    with open(tmp_path / "state/1.lock") as first, open(tmp_path / "state/2.lock", "w") as second:
        for held in (first, second):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ran(tmp_path, script_of("learner")) == (0, [joins[3]])
    assert ran(tmp_path, script_of("learner")) == (0, [joins[1]])


# systemd


def verified(folder: Path, text: str, dropin: str = "") -> subprocess.CompletedProcess:
    """``systemd-analyze verify`` of a unit whose program is one that is there."""
    unit = folder / "starling.service"
    unit.write_text(text.replace(INSTALLED, sys.executable))
    if dropin:
        (folder / "starling.service.d").mkdir()
        (folder / "starling.service.d/founder.conf").write_text(dropin.replace(INSTALLED, sys.executable))
    return subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)


@systemd
@pytest.mark.parametrize("dropin", ["", (DEPLOY / "starling-founder.conf").read_text()], ids=["member", "founder"])
def test_systemd_understands_the_unit(tmp_path, dropin):
    ended = verified(tmp_path, UNIT.read_text(), dropin)
    assert (ended.returncode, ended.stderr) == (0, "")


@systemd
def test_systemd_would_complain_of_a_wrong_key(tmp_path):
    assert "WatchdogSecs" in verified(tmp_path, UNIT.read_text().replace("WatchdogSec=", "WatchdogSecs=")).stderr
    assert "ExecStrat" in verified(tmp_path, UNIT.read_text(), "[Service]\nExecStrat=/bin/true\n").stderr


@systemd
def test_the_unit_is_hardened(tmp_path):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout[-2_000:]


def test_the_unit_fits_the_daemon():
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    keys = {key: value for key, _, value in lines}
    assert keys["Type"] == "notify"
    assert float(keys["TimeoutStopSec"]) > _GONE_BY_S
    assert keys["RestartPreventExitStatus"] == str(WRONG_INPUT)
    assert (keys["Restart"], keys["KillSignal"], keys["ProtectSystem"]) == ("on-failure", "SIGTERM", "strict")
    assert keys["Environment"].removeprefix("STARLING_NODE__ADMIN=") == NodeFile.model_fields["admin"].default
    state = parse(commands_in(UNIT.read_text())[0])["state"]
    assert state.startswith(f"%S/{keys['StateDirectory']}/")
