"""Models that go by the digest of their bits: a node says which one it means, and who lacks it asks for it.

So a model travels once to each node that needs it, and what a digest names cannot be something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from node import Context, DeadlineExceeded, Future, Message, Ref, Unreachable

_MODEL, _STATE, _ABOUT = "model ", "state ", "about "
"""What a checkpoint calls them."""


class Wanted(Message, name="cpfl/wanted/1"):
    """Give me this model."""

    digest: str


class Version(Message, name="cpfl/version/1"):
    """A cohort's model after a round, and how the cohort has come to it."""

    digest: str
    model: Ref
    losses: tuple[float, ...] = ()
    """Validation loss of the model that entered each round so far; NaN where nobody answered, infinite where it was no
    number."""
    time_s: float = 0.0
    """How long the rounds have taken, under all leaders."""
    size_bytes: int = 0
    """What leaders have sent meanwhile."""
    best: str = ""
    """The model to keep, if this was the last round."""
    state: dict[str, Ref] = field(default_factory=dict)
    """What goes on from round to round besides the model: moments of the optimizer, the common control."""
    sampler: bytes = b""
    """What the leader knows of its members, to choose whom to ask."""

    @property
    def tensors(self) -> tuple[Ref, ...]:
        """All that its digest is of."""
        return self.model, *[self.state[name] for name in sorted(self.state)]

    @property
    def about(self) -> str:
        """All but tensors, in words."""
        words = (self.best or "-", self.sampler.hex() or "-", self.time_s, self.size_bytes, *self.losses)
        return " ".join(map(str, words))


class Absent(Message, name="cpfl/absent/1"):
    """I do not have it."""

    digest: str


class Shelf:
    """The versions that one node holds. That without a digest is where every cohort starts from."""

    def __init__(self, ctx: Context, timeout_s: float) -> None:
        """``timeout_s``: how long to wait for one that was asked for."""
        self._first = Version(digest="", model=ctx.initial_model())
        self._held: dict[str, Version] = {"": self._first}
        self._about: dict[str, str] = {}  # made once, as every checkpoint has the losses of all rounds
        self._asked: dict[tuple[str, int], Future[bool]] = {}
        self.liars: dict[int, None] = {}
        """Peers that have given another model than they said, or lied about the cohort's."""
        self.pinned = ""
        """What this node has made, and has not accepted yet: nobody else has it."""
        self._timeout_s = timeout_s

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def __getitem__(self, digest: str) -> Version:
        return self._held[digest]

    def add(self, version: Version) -> None:
        """Hold a version."""
        self._held[version.digest] = version
        self._about[version.digest] = version.about

    def keep(self, digests: Collection[str]) -> None:
        """Let go of all but these."""
        kept = {"", self.pinned, *digests}
        self._held = {digest: held for digest, held in self._held.items() if digest in kept}
        self._about = {digest: about for digest, about in self._about.items() if digest in kept}

    def answer(self, digest: str) -> Version | Absent:
        """What to say to a node that wants a version."""
        return self._held.get(digest) or Absent(digest=digest)

    async def fetch(self, ctx: Context, digest: str, holders: Iterable[int]) -> bool:
        """Get a version from the first of some peers that gives it; whether it is here then."""
        for holder in holders:
            if digest in self._held:
                break
            if (pending := self._asked.get((digest, holder))) is not None:
                await pending
                continue
            self._asked[digest, holder] = asked = ctx.future()
            version = await self._ask(ctx, digest, holder)
            if version is not None:
                self.add(version)
            del self._asked[digest, holder]
            asked.set_result(version is not None)
        return digest in self._held

    async def _ask(self, ctx: Context, digest: str, holder: int) -> Version | None:
        try:
            answer = await ctx.request(holder, Wanted(digest=digest), timeout_s=self._timeout_s)
        except (Unreachable, DeadlineExceeded):
            return None
        if not isinstance(answer, Version):
            return None
        if answer.digest != digest or await ctx.digest(*answer.tensors) != digest:
            ctx.log.warning("a model that is not the one it is said to be", peer=holder, digest=digest)
            self.liars[holder] = None
            return None
        return answer

    # Over restarts

    def state(self) -> dict[str, Ref | str]:
        """For a checkpoint."""
        kept: dict[str, Ref | str] = {}
        for digest, held in self._held.items():
            if digest:
                kept[_MODEL + digest] = held.model
                kept |= {f"{_STATE}{digest} {name}": tensor for name, tensor in held.state.items()}
                kept[_ABOUT + digest] = self._about[digest]
        return kept

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Hold again what a checkpoint has kept."""
        for name, model in saved.items():
            if name.startswith(_MODEL):
                digest = name.removeprefix(_MODEL)
                best, sampler, time_s, size_bytes, *losses = saved[_ABOUT + digest].split()
                prefix = f"{_STATE}{digest} "
                state = {each.removeprefix(prefix): saved[each] for each in saved if each.startswith(prefix)}
                self.add(
                    Version(
                        digest=digest,
                        model=model,
                        losses=_numbers(losses),
                        time_s=float(time_s),
                        size_bytes=int(size_bytes),
                        best=best.strip("-"),
                        state=state,
                        sampler=bytes.fromhex(sampler.strip("-")),
                    )
                )


def _numbers(words: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, words))
