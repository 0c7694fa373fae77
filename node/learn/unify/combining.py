"""What several models say of samples together.

Weights by label: Gong et al., AAAI 2022. On logits, a model that is too sure of what it has never seen sets the scale
of a sum; on probabilities it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.unifiers import Rule

_LEAST = torch.finfo(torch.float32).tiny


def combined(logits: Sequence[Tensor], rule: Rule, weights: Sequence[Sequence[float]] = ()) -> Tensor:
    """What models say together, [samples, classes], of the logits of each, [samples, classes].

    With ``logits`` they are logits too; with ``probabilities`` and ``votes`` they are not negative and sum to 1 for
    each sample. ``weights`` [models, classes] say how much each model counts for each class; none: all alike. Votes
    count alike whatever the weights, which then decide between equals.
    """
    count = len(logits)
    alike = [torch.full_like(logits[0][0], 1 / count)] * count
    shares = [logits[0].new_tensor(row) for row in weights] or alike
    if rule == "logits":
        return _sum(logits, shares)
    probabilities = [each.softmax(1) for each in logits]
    total = _sum(probabilities, shares)
    sums = total.sum(1, keepdim=True)
    even = _sum(probabilities, alike)
    normalised = torch.where(sums > 0, total / sums.clamp_min(_LEAST), even)  # all weight may be on what none believes
    if rule == "probabilities":
        return normalised
    votes = torch.zeros_like(total)
    for each in logits:
        votes.scatter_add_(1, each.argmax(1, keepdim=True), torch.ones_like(sums))
    return (votes + normalised / 2) / (count + 0.5)  # halved, so that no probability outweighs a vote


def familiarity(logits: Sequence[Tensor]) -> dict[str, float]:
    """How sure models are of samples, and how often one agrees with most: means over models and samples, up to 1."""
    confidence = torch.stack([each.softmax(1).max(1).values.double().mean() for each in logits]).mean()
    votes = torch.zeros_like(logits[0])
    for each in logits:
        votes.scatter_add_(1, each.argmax(1, keepdim=True), torch.ones_like(votes[:, :1]))
    return {"confidence": float(confidence), "consensus": float(votes.max(1).values.double().mean()) / len(logits)}


def _sum(parts: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """The weighted sum in the order given."""
    total = parts[0] * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total = total + part * share
    return total
