"""One predictor of several models: what they say together, students that learn it,
from public samples or from made-up ones, and averages by Fisher information.

Pure functions on tensors; :class:`Unification` makes ops of them.
"""

from node.learn.unify.combining import combined
from node.learn.unify.distillation import distil, objective
from node.learn.unify.fisher import diagonal, fisher_mean
from node.learn.unify.generation import Teachers, generated
from node.learn.unify.ops import Unification

__all__ = ["Teachers", "Unification", "combined", "diagonal", "distil", "fisher_mean", "generated", "objective"]
