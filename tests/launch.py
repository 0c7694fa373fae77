"""Starts ``starling`` commands as processes of their own, forked from one that has imported everything.

Importing torch takes seconds; forking takes milliseconds. Each command gets a session, a working folder and a folder
for temporary files of its own, so that a test can see that it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil
import tomli_w

WAIT_S = 600.0
"""Only what hangs takes so long: a command on a busy machine may well take a minute."""
_PR_SET_PDEATHSIG = 1


class Command:
    """One ``starling`` command in ``folder``, started by a :class:`Launcher`."""

    def __init__(self, folder: Path, ending: socket.socket) -> None:
        self.folder = folder
        self._ending = ending
        self._ending.settimeout(WAIT_S)
        self.pid = int(self._ending.recv(64))

    def wait(self) -> int:
        """The exit code, once it has ended; negative for a signal."""
        try:
            return int(self._ending.recv(64))
        finally:
            self._ending.close()

    def end(self) -> None:
        """Leave nothing running, whatever has happened."""
        self._ending.close()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """What runs in the command's session: itself, and its nodes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def leftovers(self, within_s: float = 8.0) -> list[str]:
        """Processes that still run after a while, and temporary files that are still there."""
        _, alive = psutil.wait_procs(self.processes(), timeout=within_s)
        return [*map(str, alive), *[str(path) for path in (self.folder / "tmp").rglob("*")]]

    def to_all(self, number: int) -> None:
        """A signal to the whole group, as a terminal sends it."""
        os.killpg(self.pid, number)

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def summary(self) -> dict[str, Any]:
        """The ``summary.json`` of a run with ``--out run``."""
        summary: dict[str, Any] = json.loads((self.folder / "run" / "summary.json").read_text())
        return summary

    def models(self) -> dict[str, bytes]:
        """The files of the final models, by name."""
        return {path.name: path.read_bytes() for path in sorted((self.folder / "run" / "models").iterdir())}


class Launcher:
    """A process that waits to be told what to run."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def start(self, folder: Path, *arguments: str) -> Command:
        """Begin ``starling ARGUMENTS`` in a folder."""
        (folder / "tmp").mkdir(parents=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps({"folder": str(folder), "arguments": arguments}).encode()
            socket.send_fds(self._control, [request], [theirs.fileno()])
        return Command(folder, ours)

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait(WAIT_S)


@cache
def launcher() -> Launcher:
    """The one of this test process."""
    return Launcher()


def experiment(folder: Path, **tables: Any) -> str:
    """Write a small experiment on digits into a folder; gives the file's name."""
    small: dict[str, Any] = {
        "name": "small",
        "seed": 11,
        "nodes": 6,
        "topology": {"kind": "regular", "degree": 2},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [16]},
        "training": {"lr": 0.3, "local_steps": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(tomli_w.dumps(small | tables))
    return "experiment.toml"


# In the launcher's process


def serve(control: socket.socket) -> None:
    import numpy as np

    from node.cli.plots import histogram
    from node.experiment.loading import load
    from node.experiment.setup import prepare

    prepare(load("digits-gossip", ["nodes=6"]))
    histogram(np.arange(9.0), "nothing")
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, *_ = socket.recv_fds(control, 1 << 16, 1)
        if not data:
            return
        answer = socket.socket(fileno=fds[0])
        if os.fork() == 0:
            control.close()
            _end_with_parent()
            _attend(json.loads(data), answer)
        answer.close()


def _attend(request: dict[str, Any], answer: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        answer.close()
        _end_with_parent()
        _become(Path(request["folder"]), request["arguments"])
    with contextlib.suppress(OSError):  # the test may have gone
        answer.send(str(pid).encode())
        answer.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def _become(folder: Path, arguments: list[str]) -> NoReturn:
    code: Any = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["TMPDIR"] = str(folder / "tmp")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, target in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644), target)
        from node.cli.main import main

        code = main(arguments)  # what an entry point does with it: sys.exit(main())
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: a command would not see it
    for name in [name for name in os.environ if name.startswith("STARLING_")]:
        del os.environ[name]
    serve(socket.socket(fileno=int(sys.argv[1])))
