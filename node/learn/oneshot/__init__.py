"""One-shot learning: algorithms, what each may see, and the judge that none of them can reach."""

from node.learn.oneshot.algorithm import Algorithm, Assets, Client, Measuring, OwnTraining, Task, Upload
from node.learn.oneshot.ops import OneShotOps

__all__ = ["Algorithm", "Assets", "Client", "Measuring", "OneShotOps", "OwnTraining", "Task", "Upload"]
