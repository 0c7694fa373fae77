"""Students of leaders' own: cohorts tell each other what their models say of public samples, and no model leaves one.

Each leader distils what all say together into a student, of whatever architecture, and gives it to its cohort.
"""

from __future__ import annotations

from typing import Protocol as Interface

from node import Context, ProtocolError
from node.unifiers import UNIFIERS
from protocols.cohort_outcome import WHOLE_RUN
from protocols.leadership import Leadership
from protocols.unification import Result, Taught
from protocols.unify_settings import UnifyOptions


class Host(Interface):
    """The leader."""

    leadership: Leadership

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        ...


class Exchange:
    """One leader's part."""

    def __init__(self, host: Host, options: UnifyOptions) -> None:
        self._host = host
        self._options = options
        self._has_begun = False

    async def learn(self, ctx: Context, taught: Taught) -> None:
        """Teach a student, once, and give it to the members of the cohort."""
        if self._has_begun:
            return
        self._has_begun = True
        unify, began_s, way = ctx.unify, ctx.now, UNIFIERS[self._options.unify]
        if way.rule is None or way.loss is None:
            raise ProtocolError(f"unify: {self._options.unify!r} teaches no student")
        student = await unify.distilled(
            unify.fresh(), taught.teacher, way.rule, way.loss, self._options.distillation.how
        )
        judged = await ctx.value(unify.judge_student(student))
        accuracy, loss = float(judged["accuracy"]), float(judged["loss"])
        members = self._host.leadership.members
        name = f"cpfl/unified/{self._options.unify}"
        ctx.record(
            round=WHOLE_RUN,
            **{
                "cpfl/unify_s": ctx.now - began_s,
                f"{name}.accuracy": accuracy,
                f"{name}.loss": loss,
                f"{name}.time_s": ctx.now - began_s,
                f"{name}.flops": unify.flops,
                f"{name}.bytes": 2 * taught.teacher.spec.size_bytes + len(members) * student.spec.size_bytes,
            },
        )
        result = Result(model=student, round=taught.round, accuracy=accuracy, loss=loss)
        await ctx.send(ctx.alive([member for member in members if member != ctx.me]), result)
        self._host.finish(ctx, result)
