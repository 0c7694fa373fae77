"""A common representation under heads of one's own, learned in turn: the head first, then what is below it.

DePRL: Xiong, Yan, Wang, Li: DePRL: Achieving Linear Convergence Speedup in Personalized Decentralized Learning with
Shared Representations, AAAI 2024. With a server, FedRep: Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared
Representations for Personalized Federated Learning, ICML 2021.
"""

from pydantic import Field

from node import Context, Ref
from protocols import fedper


class DePRL(fedper.FedPer):
    """Gossip of cores, as FedPer's; each half of a model is trained while the other stands still."""

    class Config(fedper.FedPer.Config):
        """Options of ``[protocol]``."""

        head_steps: int = Field(0, ge=0)
        """Steps on the head in a round, before those on the core; 0: as many as the experiment trains."""
        core_steps: int = Field(0, ge=0)
        """Steps on the core in a round, under the head that was just trained; 0: as many as the experiment trains."""

    config: Config

    @classmethod
    def first_steps(cls, config: Config) -> int:
        """Those on the head."""
        return config.head_steps

    async def learn(self, ctx: Context, model: Ref) -> Ref:
        """Two trainings, which the experiment's learning-rate schedule counts one by one."""
        model = await ctx.train(model, steps=self.config.head_steps or None, part="head")
        return await ctx.train(model, steps=self.config.core_steps or None, part="core")
