"""Ops that many protocols need: plain arithmetic on models, whatever library their tensors come from."""

from node.op import Value, op


@op
def scale(model: Value, *, by: float) -> Value:
    """``model * by``."""
    return model * by


@op
def shift(model: Value, after: Value, before: Value, *, by: float = 1.0) -> Value:
    """``model + (after - before) * by``: carry a change that was made to one model over to another."""
    return model + (after - before) * by
