"""The mods of Byzantine nodes: whatever protocol they run, they lie in what they send, or boost what they trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field
from torch import Tensor

from node import codec
from node.attack.byzantine import ATTACKS, told, told_at_random
from node.errors import ConfigError
from node.message import Message
from node.mods import Mod, Observer
from node.op import Ref, op

if TYPE_CHECKING:
    from node.context import Context


class Board:
    """The side channel of an omniscient attacker: what every honest node has trained last, as Refs of one graph."""

    def __init__(self) -> None:
        self.trained: dict[int, Ref] = {}


class Witness(Observer):
    """Rides on an honest node, and tells the board what it trains."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self.board = board

    def trained(self, ctx: Context, before: Ref, after: Ref) -> None:
        """The board holds it from the beginning of the training on, so that attackers of the same round have it."""
        self.board.trained[ctx.me] = after


class Byzantine(Mod):
    """Replaces every model in an attacker's outgoing messages, whole or in parts, by a lie; leaves honest nodes alone.

    Whole numbers (masks, fixed-point sums) stay as they are: what is lied about are weights.
    """

    class Config(Mod.Config):
        """Options of the mod; every other key is an option of the attack."""

        model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

        attack: str
        """Which lie: a name in ``node.attack.byzantine.ATTACKS``."""
        byzantine: tuple[int, ...] = Field(min_length=1)
        """The nodes that lie; each knows that the others do."""
        omniscient: bool = False
        """Knows all honest models, not only those that it has heard: simulation only."""
        per_receiver: bool = False
        """Lies anew to each receiver, where the attack is random."""

    config: Config

    def __init__(self, config: Config, board: Board | None = None) -> None:
        """Raises ConfigError for an attack or option that there is not, and for omniscience without a board."""
        super().__init__(config)
        if config.attack not in ATTACKS:
            raise ConfigError(f"mods.attack: no attack {config.attack!r} (there are {', '.join(ATTACKS)})")
        if config.omniscient and board is None:
            raise ConfigError("mods.omniscient: needs a board that all honest nodes report to, as in a simulation")
        self._attack = ATTACKS[config.attack]
        extra = config.model_extra or {}
        self._options = {key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()}
        self._attack.check(config.attack, self._options)
        self._board = board
        # By node: a mod that is copied for each of several nodes shares these.
        self._heard: dict[tuple[int, str], dict[int, Ref]] = {}
        self._nodes: dict[int, int] = {}
        self._told: dict[int, list[tuple[Ref, Ref]]] = {}

    def incoming(self, ctx: Context, sender: int, message: Message) -> Message:
        """Remember the sender's latest model, unless it is a lie itself."""
        if ctx.me in self.config.byzantine and sender not in self.config.byzantine:
            for place, model in codec.placed(message):
                self._heard.setdefault((ctx.me, place), {})[sender] = model
        return message

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message:
        """The message with a lie in place of each model."""
        if ctx.me not in self.config.byzantine:
            return message
        lies = [(model, self._lie(ctx, to, place, model)) for place, model in codec.placed(message)]
        if not lies:
            return message
        self._told[ctx.me] = lies
        return codec.with_refs(message, [lie for _, lie in lies])

    def _lie(self, ctx: Context, to: int, place: str, model: Ref) -> Ref:
        if model.spec.names or not model.spec.dtype.startswith("float"):
            return model
        is_shared = not (self._attack.is_per_receiver or self.config.per_receiver)
        before = [lie for told, lie in self._told.get(ctx.me, ()) if told is model]
        if is_shared and before:
            return before[0]
        knowledge = self._knowledge(ctx, place, model) if self._attack.needs_honest else {}
        nodes = self._nodes.setdefault(ctx.me, len(ctx.peers(None)) + 1)
        numbers = {"nodes": nodes, "byzantine": len(self.config.byzantine)}
        if not is_shared:
            numbers["to"] = to
        if to in knowledge and not is_shared:
            numbers["target"] = list(knowledge).index(to)
        static = {**self._options, **numbers, "attack": self.config.attack}
        return ctx.apply(told_at_random if self._attack.is_random else told, model, *knowledge.values(), **static)

    def _knowledge(self, ctx: Context, place: str, model: Ref) -> dict[int, Ref]:
        """What honest nodes have in the model's place, by number; nothing known: the liar makes do with its own."""
        liars = self.config.byzantine
        known = self._board.trained if self._board and self.config.omniscient else self._heard.get((ctx.me, place), {})
        return {node: known[node] for node in sorted(known) if node not in liars and known[node].spec == model.spec}


class Boost(Mod):
    """Scales up what attackers have trained, so that after mixing it is as if it alone had been trained.

    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, AISTATS 2020 (model replacement): for attackers on poisoned data.
    """

    class Config(Mod.Config):
        """Options of the mod."""

        byzantine: tuple[int, ...] = Field(min_length=1)
        """The nodes that boost."""
        weight: float = Field(gt=0, le=1)
        """Mixing weight that the victim gives to the attacker's model."""

    config: Config

    def trained(self, ctx: Context, before: Ref, after: Ref) -> Ref:
        """The boosted model, for an attacker."""
        if ctx.me not in self.config.byzantine:
            return after
        return ctx.apply(boosted, before, after, weight=self.config.weight)


@op
def boosted(before: Tensor, after: Tensor, *, weight: float) -> Tensor:
    """``before`` and the step from there to ``after``, which is to survive a mixing weight."""
    return before + (after - before) / weight
