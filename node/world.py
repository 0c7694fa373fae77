"""The seam between a context and the world it runs in: one implementation live, one simulated.

Nothing that a protocol can reach may exist on one side only; the parity tests run the same bodies on both.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Awaitable, Collection, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from typing import Protocol as Interface

import numpy as np

from node.aggregation import Aggregation
from node.clock import Clock
from node.config import TopologySection
from node.errors import StarlingError
from node.graph import Graph
from node.message import Message
from node.oneshot import OneShotOps
from node.op import Op, Ref, Spec, Static, Value
from node.participants import Participants
from node.private import Mechanisms
from node.sparse import SparseOps
from node.topology import Topology
from node.unify import UnifyOps

if TYPE_CHECKING:
    from node.context import Context
    from node.inference import Inference

T = TypeVar("T")


class Done(Generic[T]):
    """An awaitable whose result is there already: awaiting it never suspends."""

    __slots__ = ("result",)

    def __init__(self, result: T) -> None:
        self.result = result

    def __await__(self) -> Generator[Any, None, T]:
        """Give the result at once."""
        yield from ()
        return self.result


class Workload(Interface):
    """What the nodes of an experiment learn, as ops on models; :mod:`node.learn` has the real one."""

    model_spec: Spec
    init: Op[...]
    fresh: Op[...]
    """A model drawn independently of the initial one, by the static argument draw."""
    train: Op[...]
    adapt: Op[...]
    """Training that is guided: pulled to another model, masked, or held to a part of the layers."""
    evaluate: Op[...]
    risk: Op[...]
    """How well an attack on a model's losses tells what a node trains on from what it holds out (AUC - 0.5)."""
    utility: Op[...]
    """The root mean square of a model's losses on one batch of what a node trains on."""
    mix: Op[...]
    part: Op[...]
    """The elements ``start`` to ``stop`` of a model."""
    join: Op[...]
    """Parts of a model one after another."""
    aggregation: Aggregation | None
    """What takes the place of ``mix`` where a node must not trust all that it hears."""

    @property
    def sparse(self) -> SparseOps:
        """Masks of the model."""
        ...

    @property
    def unify(self) -> UnifyOps | None:
        """What makes one model of several, where there are classes to tell apart."""
        ...

    @property
    def oneshot(self) -> OneShotOps | None:
        """What one-shot algorithms do, where there are classes to tell apart."""
        ...

    def shard_size(self, node: int) -> int:
        """Samples that a node trains on."""
        ...

    def label_histogram(self, node: int) -> np.ndarray:
        """How many samples of each class a node trains on, shape [classes]."""
        ...

    def steps(self, node: int) -> int:
        """Steps of one default ``train``."""
        ...

    def samples(self, node: int, steps: int) -> int:
        """Samples that so many steps process."""
        ...

    def held_samples(self, node: int, on: str) -> int:
        """Samples that an evaluation of a node on ``test``, ``local`` or ``train`` goes through."""
        ...

    def lr(self, call: int) -> float:
        """Learning rate of a node's ``call``-th train, counted from 0."""
        ...

    @property
    def groups(self) -> int:
        """How many kinds of data there are: ground truth of the experiment."""
        ...

    def group_of(self, node: int) -> int:
        """Which kind of data a node has: ground truth of the experiment."""
        ...

    def cut(self, layers: int) -> int:
        """Where a model's last ``layers`` layers begin. Raises ConfigError where it has no more than these."""
        ...


def shapes(workload: Workload, private_layers: int) -> frozenset[Spec]:
    """What a model, or a part of one, in a message may look like."""
    whole = workload.model_spec
    if not private_layers:
        return frozenset({whole})
    cut = workload.cut(private_layers)
    return frozenset(whole._replace(shape=(size,)) for size in (*whole.shape, cut, whole.shape[0] - cut))


class Ledger(Interface):
    """What every node has spent of its privacy budget."""

    def charge(self, node: int, steps: int) -> bool:
        """Enter training steps that a node is about to take; False: it must not take them, and goes on without.

        Raises:
            BudgetSpent: the budget does not allow them.
        """
        ...

    def spent(self, node: int) -> Mapping[str, float]:
        """A node's privacy loss so far, as metrics."""
        ...


class Lineage(Interface):
    """Keeps how every value came to be and who received it, for those who account for it afterwards."""

    def made(self, node: int, value: Ref, op: str, inputs: Sequence[Ref], static: Static) -> None:
        """A node has recorded an op."""
        ...

    def received(self, node: int, sender: int, message: Message) -> None:
        """A message has come to a node, before any mod."""
        ...

    def left(self, node: int, value: Ref, content: memoryview) -> None:
        """A value's bytes are about to leave a real node's process: to others, or to where it saves them."""
        ...

    def came(self, node: int, value: Ref, content: memoryview) -> None:
        """A value's bytes have come into a real node's process, which has made this Ref of them."""
        ...

    def close(self) -> None:
        """Nothing more will happen."""
        ...


class World(Interface):
    """What a context stands on."""

    graph: Graph
    workload: Workload
    topology: Topology
    participants: Participants
    """Everybody, and who owns whom; what of it a protocol may know, ``ctx.privacy`` tells."""
    seed: int
    initial: Ref
    gone: Collection[int]
    """Nodes that everybody knows to be gone; a context may know of more."""
    ledger: Ledger | None
    """Privacy budgets, where training is private."""
    lineage: Lineage | None
    """Where somebody wants to know how values came to be."""
    mechanisms: Mechanisms | None
    """What hides models from others, where it is at hand."""
    inference: Inference | None
    """Models and adapters to serve, where the experiment is about that."""

    @property
    def clock(self) -> Clock:
        """Time in this world."""
        ...

    def peers(self, role: str | None) -> tuple[int, ...]:
        """All peers of a role (None: of any), sorted; virtual nodes have a role of their own, and are no peers."""
        ...

    def topology_of(self, section: TopologySection) -> Topology:
        """Another topology over the same nodes; built once."""
        ...

    def train(self, ctx: Context, task: Ref, model: Ref, steps: int, samples: float | None = None) -> Awaitable[Ref]:
        """Let the time of ``steps`` training steps, recorded as ``task``, pass; gives ``model``, made from it.

        ``samples``: how many of the experiment's samples its model could be trained on meanwhile; None: as many as such
        steps of the node's own training take.
        """
        ...

    def evaluating(self, ctx: Context, on: str) -> None:
        """A node has asked for an evaluation on some data."""
        ...

    def send(self, ctx: Context, to: Sequence[int], message: Message, request: int = 0) -> Awaitable[None]:
        """Send to some peers; done when the world has taken the message over."""
        ...

    def answer(self, ctx: Context, to: int, message: Message, reply: int) -> None:
        """Send without waiting, in answer to a request of that number (0: to none)."""
        ...

    def value(self, ref: Ref) -> Awaitable[Value]:
        """Solve a value."""
        ...

    def solved(self, refs: Sequence[Ref]) -> Awaitable[None]:
        """Solve several values together."""
        ...

    def record(self, ctx: Context, round: int, fields: Mapping[str, Ref | float]) -> None:
        """Keep some metrics of a node's round."""
        ...

    def watch(self, ctx: Context, peers: Sequence[int]) -> None:
        """A node waits for these peers: it must be told when one of them goes."""
        ...

    def spawn(self, ctx: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run work beside ``run``, until it is done or the whole run is over; its failure is the node's."""
        ...

    def save(self, ctx: Context, state: Mapping[str, Any]) -> Awaitable[None]:
        """Keep a node's state, in place of what was kept before."""
        ...

    def load(self, ctx: Context) -> Mapping[str, Any] | None:
        """What was saved last, or None."""
        ...


class LocalData:
    """What a node may know of its own data without training on it."""

    __slots__ = ("_node", "_world")

    def __init__(self, world: World, node: int) -> None:
        self._world = world
        self._node = node

    @property
    def samples(self) -> int:
        """Samples this node trains on."""
        return self._world.workload.shard_size(self._node)

    @property
    def held_samples(self) -> int:
        """Samples that this node holds out, to judge models by: ``evaluate(model, on="local")``."""
        return self._world.workload.held_samples(self._node, "local")

    @property
    def label_histogram(self) -> np.ndarray:
        """How many samples of each class this node trains on, shape [classes]."""
        return self._world.workload.label_histogram(self._node)

    @property
    def true_group(self) -> tuple[int, ...]:
        """All nodes whose data are of this node's kind, itself among them: ground truth that no real node could know.

        For evaluation only: a protocol that reads it is an upper bound for those that do not.
        """
        workload = self._world.workload
        group = workload.group_of(self._node)
        return tuple([node for node in self._world.peers("learner") if workload.group_of(node) == group])


def cannot_go_on(error: BaseException) -> str:
    """Why a node cannot go on, in one line; what is not an error of ours comes with its place in the user's code."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, StarlingError):
        return str(error)
    said = " ".join(str(error).split())
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{what}{_place(error)}"


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code that an exception came through."""
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    foreign = {"node", *sys.stdlib_module_names}
    outside: list[str] = []
    theirs: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] in foreign:
            continue
        file = frame.f_code.co_filename
        (outside if file.startswith(installed) else theirs).append(f" ({Path(file).name}, line {line})")
    # A protocol that was installed as a package is what calls the other packages.
    return theirs[-1] if theirs else outside[0] if outside else ""
