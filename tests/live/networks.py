"""What the tests of networks share: a network's folder, and members that join it in this process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import tomli_w

from node.config import ExperimentConfig
from node.daemon.belonging import Belonging, belong
from node.daemon.daemon import Daemon
from node.daemon.nodefile import NodeFile
from node.daemon.standing import Phase
from node.daemon.state import State, open_state
from node.experiment.setup import Setup, prepare
from node.trust.certificate import Role
from node.trust.folder import NetworkFolder
from node.trust.token import Bootstrap, Token

WAIT_S = 60.0
FAR_S = 2**31


def experiment(nodes: int, **protocol: Any) -> ExperimentConfig:
    return ExperimentConfig(
        name="tiny",
        seed=3,
        nodes=nodes,
        clock="real",
        protocol={"use": "dpsgd", "rounds": 3, "deadline_s": 30.0, **protocol},
        topology={"kind": "full"},
        model={"hidden": (16,)},
        training={"local_steps": 2},
    )


class Network:
    """A network whose founder is node 0; everybody is in this process."""

    def __init__(self, folder: Path, config: ExperimentConfig, stack: ExitStack) -> None:
        self.config = config
        self.folder = NetworkFolder.create(
            folder / "network",
            "trial",
            tomli_w.dumps(config.model_dump(exclude_none=True)),
            config.nodes,
            "127.0.0.1:1",
        )
        self.setup: Setup = prepare(config)
        self.daemons: dict[str, Daemon] = {}
        self.tasks: dict[str, asyncio.Task[int]] = {}
        self._path = folder
        self._stack = stack
        self._open: dict[str, ExitStack] = {}

    def state(self, name: str) -> State:
        """Open a state folder; :meth:`stop` closes it."""
        closing = self._open[name] = ExitStack()
        self._stack.push(closing)
        return closing.enter_context(open_state(self._path / name))

    def settings(self, name: str, **more: Any) -> NodeFile:
        keys = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "timing": "host", "state": self._path / name, **more}
        return NodeFile(**keys)

    def found(self, **more: Any) -> Daemon:
        """Start node 0."""
        state = self.state("founder")
        with self.folder.authority() as authority:
            authority.enrol(state.identity, Role.learner, time.time())
        settings = self.settings("founder", network=self.folder.path, **more)
        return self._start("founder", settings, belong(settings, state, None), state)

    def token(self, uses: int = 10, expires_s: int = FAR_S, role: Role = Role.learner) -> Token:
        founder = self.daemons["founder"]
        address = founder.standing.address.removeprefix("tcp://")
        with self.folder.authority() as authority:
            return authority.invite(role, expires_s, uses, [Bootstrap(address, founder._state.identity.curve_public)])

    async def join(self, name: str, token: Token | None, **settings: Any) -> Daemon:
        """Have somebody join, with a state folder of that name, and start it."""
        state = self.state(name)
        chosen = self.settings(name, **settings)
        belonging = await asyncio.to_thread(belong, chosen, state, token)
        return self._start(name, chosen.model_copy(update={"node": belonging.certificate.node}), belonging, state)

    def _start(self, name: str, settings: NodeFile, belonging: Belonging, state: State) -> Daemon:
        daemon = self.daemons[name] = Daemon(settings, self.setup, state, lambda: None, belonging)
        self.tasks[name] = asyncio.create_task(daemon.run())
        return daemon

    async def stop(self, name: str) -> int:
        self.daemons[name].stop("test")
        status = await self.tasks[name]
        self._open[name].close()
        return status

    async def phase(self, phase: Phase, *names: str) -> None:
        """Wait until these (default: all) are there."""
        chosen = names or tuple(self.daemons)
        await until(
            lambda: (
                all(self.daemons[name].standing.phase is phase for name in chosen)
                or any(self.tasks[name].done() for name in chosen)
            )
        )
        assert {name: self.daemons[name].standing.phase for name in chosen} == dict.fromkeys(chosen, phase)

    async def get(self, name: str, path: str) -> Any:
        url = f"{self.daemons[name].standing.admin}/{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
        return text if path == "metrics" else json.loads(text)

    async def refused(self, name: str) -> dict[str, int]:
        """The counters of refusals that a node shows, by reason."""
        prefix = "starling_refused_total{reason="
        lines = [line for line in (await self.get(name, "metrics")).splitlines() if line.startswith(prefix)]
        return {line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in lines}


@asynccontextmanager
async def network(
    folder: Path, nodes: int, *, founder: dict[str, Any] | None = None, **protocol: Any
) -> AsyncIterator[Network]:
    """A network with its founder started, with more settings of its own where they are given."""
    with ExitStack() as stack:
        made = Network(folder, experiment(nodes, **protocol), stack)
        try:
            made.found(**(founder or {}))
            await until(lambda: made.daemons["founder"].standing.address)
            yield made
        finally:
            for name, task in made.tasks.items():
                made.daemons[name].stop("end of test")
                task.cancel()
            await asyncio.gather(*made.tasks.values(), return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)
