"""D-PSGD, and then some steps on one's own data that nobody hears of: the simplest personalization there is.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu: Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017.
Fine-tuning a common model as the line that personalization must pass: Yu, Bagdasaryan, Shmatikov: Salvaging Federated
Learning by Local Adaptation, 2020.
"""

from pydantic import Field

from node import Context, Ref
from protocols import dpsgd


class FineTuned(dpsgd.DPSGD):
    """D-PSGD; then each node trains alone. What is sent is D-PSGD's."""

    class Config(dpsgd.DPSGD.Config):
        """Options of ``[protocol]``."""

        finetune_steps: int = Field(50, ge=0)
        """Steps of each node by itself after the last round; 0: D-PSGD."""
        lr_factor: float = Field(0.1, gt=0)
        """What multiplies the learning rate in these steps: the common model is near its optimum already."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """All rounds of D-PSGD, then the steps alone: they are one further round in the metrics."""
        model = await super().run(ctx)
        if not self.config.finetune_steps:
            return model
        model = await ctx.train(model, steps=self.config.finetune_steps, lr=ctx.lr * self.config.lr_factor)
        ctx.record(round=self.config.rounds, **ctx.judge(model, is_personal=True))
        return model
