"""Which kernel adds adapters to which batch: a rule, or what was measured once on this machine and is remembered.

Whoever measures gives the stopwatch. What a batch looks like decides, and nothing that differs between two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from node.adapters.kernels import KERNELS, Kernel, Rows, Stack
from node.learn.choices import Choices

REPEATS = 5
WIDE = 512
"""From this width on, segments were faster than gathering."""


class Bucket(NamedTuple):
    """Batches that are treated alike: each number is a power of two, or 0."""

    rows: int
    used: int
    """Distinct adapters."""
    tokens: int
    """Of each row."""

    @classmethod
    def of(cls, rows: int, used: int, tokens: int) -> Bucket:
        """The bucket of a batch: its numbers, rounded up."""
        return cls(*(1 << (count - 1).bit_length() if count else 0 for count in (rows, used, tokens)))


class Chooser:
    """Names a kernel for each batch."""

    def __init__(self, width: int, measured: Mapping[Bucket, str] | None = None) -> None:
        """``width``: of the model's hidden states; ``measured``: the fastest kernel by bucket, as far as known."""
        self._width = width
        self._measured = dict(measured or {})

    def name(self, rows: Rows, tokens: int) -> str:
        """The name of the kernel for a batch of that many tokens in each row."""
        bucket = Bucket.of(len(rows.slots), len(rows.used), tokens)
        return self._measured.get(bucket) or rule(bucket, self._width)

    def kernel(self, rows: Rows, tokens: int) -> Kernel:
        """The kernel itself."""
        return KERNELS[self.name(rows, tokens)]


def rule(bucket: Bucket, width: int) -> str:
    """The kernel for what was never measured: segments where rows share adapters or are wide, else gathering."""
    return "segment" if bucket.used <= bucket.rows / 4 or width >= WIDE else "gather"


def buckets(most_rows: int, tokens: Iterable[int] = (1, 32)) -> list[Bucket]:
    """All buckets of batches up to that many rows, for decoding (1 token) and for pieces of prompts."""
    sizes = [1 << power for power in range(Bucket.of(most_rows, 0, 0).rows.bit_length())]
    return [Bucket(rows, used, each) for each in tokens for rows in sizes for used in sizes if used <= rows]


def measure(stacks: Sequence[Stack], wanted: Iterable[Bucket], stopwatch: Callable[[], float]) -> dict[Bucket, str]:
    """The fastest kernel for each bucket, on the modules of one layer.

    ``stopwatch`` tells seconds, best of CPU time. A bucket with more adapters than there are slots is left out.
    """
    fastest = {}
    for bucket in wanted:
        if bucket.used < len(stacks[0].scale):
            seconds = {name: _seconds(kernel, stacks, bucket, stopwatch) for name, kernel in KERNELS.items()}
            fastest[bucket] = min(seconds, key=lambda name: seconds[name])
    return fastest


def remembered(
    choices: Choices, stacks: Sequence[Stack], wanted: Iterable[Bucket], stopwatch: Callable[[], float]
) -> dict[Bucket, str]:
    """The same, of which an earlier run on this machine knows the most; what it does not know is measured and kept."""
    machine = _of_machine(stacks)
    keys = {each: f"{machine} rows={each.rows} used={each.used} tokens={each.tokens}" for each in wanted}
    known = {bucket: name for bucket, key in keys.items() if (name := choices.get(key)) in KERNELS}
    new = measure(stacks, [bucket for bucket in keys if bucket not in known], stopwatch)
    for bucket, name in new.items():
        choices.keep(keys[bucket], name)
    return {bucket: name for bucket in keys if (name := known.get(bucket) or new.get(bucket))}


def _seconds(kernel: Kernel, stacks: Sequence[Stack], bucket: Bucket, stopwatch: Callable[[], float]) -> float:
    """Of one layer's modules: the least of some repeats."""
    rows = Rows([row % bucket.used for row in range(bucket.rows)])
    size, dtype = (bucket.rows, bucket.tokens), stacks[0].a.dtype
    inputs = [
        (torch.ones(*size, stack.b.shape[1], dtype=dtype), torch.ones(*size, stack.a.shape[2], dtype=dtype))
        for stack in stacks
    ]
    taken = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            start = stopwatch()
            for (y, x), stack in zip(inputs, stacks, strict=True):
                kernel(y, x, stack, rows)
            taken.append(stopwatch() - start)
    return min(taken[1:])  # the first sets up what is set up on first use


def _of_machine(stacks: Sequence[Stack]) -> str:
    """What the measurement depends on, beside the batch."""
    shapes = sorted({f"{stack.a.shape[2]}x{stack.b.shape[1]}" for stack in stacks})
    rank, dtype = stacks[0].a.shape[1], str(stacks[0].a.dtype).removeprefix("torch.")
    return (
        f"lora {','.join(shapes)} r{rank} {dtype}"
        f" torch{torch.__version__} threads{torch.get_num_threads()} {torch.backends.cpu.get_cpu_capability()}"
    )
