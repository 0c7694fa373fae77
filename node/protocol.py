"""What a protocol is: a class with a ``run`` coroutine against one :class:`~node.context.Context`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from node.assumptions import Asked
from node.config import Section, TopologySection
from node.errors import ProtocolError
from node.message import Message
from node.op import Ref
from node.row import Row

if TYPE_CHECKING:
    from node.context import Context
    from node.inference import Inference

M = TypeVar("M", bound=Message)
P = TypeVar("P", bound="Protocol")
Handler = Callable[[P, "Context", int, M], Message | None]


def on(kind: type[M]) -> Callable[[Handler[P, M]], Handler[P, M]]:
    """Mark a method as the handler of one kind of message.

    It is called as ``method(ctx, sender, message)`` at the moment of delivery, between two steps of ``run``. It must
    not wait: it may change the protocol's own state, record ops and ``ctx.spawn`` work; a message that it returns goes
    back to the sender (and answers it, if it was a ``request``).
    """

    def mark(method: Handler[P, M]) -> Handler[P, M]:
        method._handles = kind  # type: ignore[attr-defined]
        return method

    return mark


class Protocol:
    """Base of all learning protocols. One instance per node; state lives on ``self``.

    Subclass it, declare options as a nested ``Config`` and write ``run``; see ``protocols/README.md``.
    """

    class Config(Section):
        """A protocol's own options: keys of the ``[protocol]`` table."""

    handlers: ClassVar[Mapping[type[Message], Callable[..., Message | None]]] = {}
    uses_topology: ClassVar[bool] = True
    """Whether it asks the context for neighbours; where not, the experiment's topology need not exist."""
    side_channels: ClassVar[tuple[str, ...]] = ()
    """What its traffic tells besides the models that it carries, because a choice was made with private data (who is
    contacted, a cluster's number): no noise on models covers that, so every summary says so."""
    judges_on_data: ClassVar[bool] = False
    """Whether it compares models by their losses on a node's own training data: it then has no use for a node that may
    not touch these any more (``privacy.when_spent = "relay"``)."""
    aggregates: ClassVar[bool] = False
    """Whether other nodes' models enter a node's own through ``ctx.aggregate`` alone, so that every rule of the
    experiment's ``[aggregation]`` guards it; where not, there is only the rule ``mean``."""
    hides_models: ClassVar[bool] = False
    """Whether it draws noise or shares secrets, through ``ctx.privacy``, in every configuration."""
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name, so that a subclass that overrides a handler without marking it again still handles the message.
        names = {kind: method.__name__ for kind, method in cls.handlers.items()}
        for name, method in vars(cls).items():
            if kind := getattr(method, "_handles", None):
                names[kind] = name
        cls.handlers = {kind: getattr(cls, name) for kind, name in names.items()}

    def __init__(self, config: Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def check(cls, config: Any, nodes: int) -> None:
        """Raise ConfigError where this configuration cannot run with that many nodes."""

    @classmethod
    def shows(cls, config: Any) -> Sequence[str]:
        """The side channels that this configuration opens, with the epsilon of those that noise covers."""
        return cls.side_channels

    @classmethod
    def hides(cls, config: Any) -> bool:
        """Whether this configuration draws noise or shares secrets: a summary then says if they are secret."""
        return cls.hides_models

    @classmethod
    def releases(cls, config: Any) -> Mapping[str, float]:
        """What it tells of a node's records, once, under differential privacy of its own: epsilon by what it is.

        The unit is a record, added or removed, and delta 0. Noise is drawn from ``ctx.privacy.coins()``.
        """
        return {}

    @classmethod
    def topologies(cls, config: Any) -> Sequence[TopologySection]:
        """Topologies of the protocol's own, beside the experiment's, so that they are checked before a run starts."""
        return ()

    @classmethod
    def aggregated(cls, config: Any, nodes: int) -> int | None:
        """How many models a node aggregates in a full round, its own included where it counts; None: its own and those
        of its neighbours in the topology."""
        return None

    @classmethod
    def first_steps(cls, config: Any) -> int:
        """Steps of a node's first training, where the protocol takes its own number; 0: as many as the experiment's. By
        these a privacy budget is found too small before the run."""
        return 0

    @classmethod
    def private_layers(cls, config: Any) -> int:
        """How many of a model's last layers stay with their node, for ``ctx.split``; messages may carry both parts."""
        return 0

    @classmethod
    def uses_local_tests(cls, config: Any) -> bool:
        """Whether it evaluates on what nodes hold out for themselves: ``data.local_test_fraction`` must be above 0."""
        return False

    @classmethod
    def needs_plain_sgd(cls, config: Any) -> bool:
        """Whether it takes what a training changes, over its steps, for a gradient: no momentum, no weight decay."""
        return False

    @classmethod
    def unifier(cls, config: Any) -> str:
        """The name in :data:`node.unifiers.UNIFIERS` by which it makes one model of several; empty: it does not."""
        return ""

    @classmethod
    def compared(cls, config: Any) -> Sequence[str]:
        """Names of further unifiers that it tries, to tell how they would have done."""
        return ()

    @classmethod
    def asked(cls, config: Any) -> Asked | None:
        """The one-shot algorithm that it runs, and what clients may reveal to it; None: it runs none."""
        return None

    @classmethod
    def inference(cls, config: Any, nodes: int) -> Inference | None:
        """What there is to serve, for ``ctx.inference``, where nobody brings a real model; None: it serves nothing."""
        return None

    @classmethod
    def summary(cls, config: Any, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
        """What a run's summary says under the protocol's own name, made of what the run has measured; often nothing.

        Args:
            rows: all recorded metrics, in the order in which they came. Those with a ``/`` in their names are for this
                alone: the summary does not list them among its own.
            traffic: bytes sent, by the wire name of messages.
        """
        return {}

    @classmethod
    def roles(cls, config: Any, nodes: int) -> Mapping[int, str]:
        """Nodes with a role other than ``learner``; only learners are given data to train on."""
        return {}

    @classmethod
    def virtual_nodes(cls, config: Any) -> int:
        """How many virtual nodes each node owns: participants beyond the nodes, with keys and addresses of their own.

        They run the protocol too, have no data, and record nothing; ``ctx.privacy`` tells owner and virtual node, and
        nobody else, that they belong together.
        """
        return 0

    async def run(self, ctx: Context) -> Ref | None:
        """Take part, and return this node's final model (None: it has none)."""
        raise ProtocolError(f"{type(self).__qualname__} has no run(ctx)")
