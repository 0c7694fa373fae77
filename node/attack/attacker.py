"""What every attack is made of: one ``[[attackers]]`` table at work on the nodes of an experiment.

An attack takes part in three ways, and may leave out each of them: it changes what some nodes hold before the run
(:meth:`Attack.poisoned`), it rides on nodes during the run (:meth:`Attack.wrapping`), and it judges their final models
(:meth:`Attack.judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

from node.attack.truth import Truth
from node.config import ExperimentConfig, Section
from node.learn.data import Federation
from node.learn.models import Model
from node.mods import Mod, Observer
from node.op import Op, Spec, Task, Value
from node.participants import Participants
from node.topology import Topology


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Where an attack takes place: what its evaluator knows of the experiment."""

    config: ExperimentConfig
    federation: Federation
    model: Model
    topology: Topology
    cut: int
    """Where the layers begin that the protocol keeps private; the model's dimension where there are none."""
    truth: Truth
    participants: Participants
    """Who is behind which identity: it is never read off a message."""
    options: Any = None
    """The protocol's."""

    @property
    def basis(self) -> bytes:
        """What the ops of an attack follow from besides their tasks: the experiment, and the code of all attacks."""
        sources = [path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))]
        return b"".join([self.config.model_dump_json().encode(), *sources])


class Attack:
    """One kind of attack by some nodes."""

    class Config(Section):
        """Options of the kind: keys of its ``[[attackers]]`` table."""

    config: Any
    is_lie: ClassVar[bool] = False
    """Whether it changes what its nodes send or hold: of such attacks a node takes part in one."""

    def __init__(self, config: Any, nodes: tuple[int, ...], scene: Scene) -> None:
        """Raises ConfigError for options that do not fit the experiment.

        Args:
            config: a ``Config`` of this class.
            nodes: the attackers, with their Sybil identities.
            scene: the experiment.
        """
        self.config = config
        self.nodes = nodes
        self.scene = scene
        self.ops: list[Op[...]] = []
        """Everything made by :meth:`op`, for executors that solve in other processes."""

    @classmethod
    def check(cls, config: Any, nodes: tuple[int, ...], experiment: ExperimentConfig) -> None:
        """Raise ConfigError for what can be seen to be wrong before any data are read."""

    @classmethod
    def poisoned(cls, config: Any, nodes: tuple[int, ...], federation: Federation, seed: int) -> Federation:
        """The data that the nodes of the experiment hold, after the attackers have changed theirs."""
        return federation

    def op(self, name: str, solve: Callable[[Task], Value], spec: Spec) -> Op[...]:
        """An op of this attack, whose value has the same spec for all inputs; named so that no other attack has it."""
        owner = blake2b(f"{self.nodes} {self.config.model_dump_json()}".encode(), digest_size=4).hexdigest()
        basis = self.scene.basis
        made: Op[...] = Op(f"attack:{name}:{owner}", solve, spec=lambda *_: spec, basis=lambda key: basis)
        self.ops.append(made)
        return made

    def wrapping(self, node: int) -> Sequence[Mod | Observer]:
        """What rides on a node: new instances at every call."""
        return ()

    def judge(self, models: Mapping[int, Value]) -> dict[str, Any]:
        """What final models by node tell; becomes part of ``attacks`` in ``summary.json``."""
        return {}
