"""How long simulated devices compute, and what they can hold: built once, from keys, a trace, or the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from node.config import DevicesSection
from node.errors import ConfigError
from node.sim.draws import draw_rows, normal, per_node
from node.sim.traces import fedscale
from node.sim.traces.device_table import SUFFIXES, DeviceTrace, read_devices

_EVALUATION = 1 / 3
"""Evaluating takes a forward pass, training a backward pass of about twice that besides."""


class Devices:
    """The devices of one experiment.

    Args:
        seconds_per_sample: of each node, for training the experiment's own model.
        overhead_s: of each node, for each training step.
        section: gives ``jitter`` and ``evaluate_time``.
        trace: gives ``memory_bytes``, ``up_bps`` and ``down_bps``, in the order of nodes.
    """

    up_bps: Sequence[float] | None
    """Uplink of each node, bits per second; None: what the network's keys say."""
    down_bps: Sequence[float] | None
    """Downlink of each node, bits per second; None: what the network's keys say."""
    memory_bytes: Sequence[float] | None
    """What each node can hold; None: enough."""

    def __init__(
        self,
        seconds_per_sample: Sequence[float],
        overhead_s: Sequence[float],
        section: DevicesSection,
        seed: int,
        *,
        memory_bytes: Sequence[float] | None = None,
        up_bps: Sequence[float] | None = None,
        down_bps: Sequence[float] | None = None,
    ) -> None:
        self._seconds_per_sample = seconds_per_sample
        self._overhead_s = overhead_s
        self._jitter = section.jitter
        self._evaluation = _EVALUATION if section.evaluate_time else 0.0
        self._seed = seed
        self.memory_bytes = memory_bytes
        self.up_bps = up_bps
        self.down_bps = down_bps

    def train_s(self, node: int, samples: float, steps: int, counter: int) -> float:
        """Seconds that a node takes for some steps on so many samples in all.

        ``counter`` numbers a node's trainings: each has jitter of its own, a lognormal factor of mean 1.
        """
        seconds = samples * self._seconds_per_sample[node] + steps * self._overhead_s[node]
        if not self._jitter:
            return seconds
        sigma = self._jitter
        return seconds * math.exp(sigma * (normal(self._seed, node, counter, "jitter") - sigma / 2))

    def evaluate_s(self, node: int, samples: int) -> float:
        """Seconds that a node takes to evaluate so many samples; 0 unless ``devices.evaluate_time`` is set."""
        return samples * self._seconds_per_sample[node] * self._evaluation


def build(
    section: DevicesSection, nodes: int, seed: int, flops: float, reference_flops: float | None, batch_size: int
) -> Devices:
    """The devices that ``[devices]`` describes.

    Args:
        flops: of training one sample of the experiment's model.
        reference_flops: of training one sample of the model that the seconds are for; None: it was not named.
        batch_size: of the experiment, for traces that tell the time of a step.

    Raises:
        ConfigError: the trace cannot be read, has no row for a node, or does not tell what its seconds are for.
    """
    reference_flops = section.reference_flops or reference_flops
    if not section.trace:
        if reference_flops is None:
            raise ConfigError("devices.reference_model: name the model that devices.seconds_per_sample is for")
        drawn = per_node(section.seconds_per_sample, nodes, seed, "seconds_per_sample")
        cost = flops / reference_flops
        return Devices([seconds * cost for seconds in drawn], [section.overhead_s] * nodes, section, seed)
    trace = _read(section, nodes, seed, batch_size)
    rows = _rows(trace, section, nodes, seed)
    seconds_per_sample = (trace.seconds_per_sample * (flops / _reference(trace, reference_flops)))[rows]
    return Devices(
        seconds_per_sample.tolist(),
        _of_nodes(trace.overhead_s, rows) or [0.0] * nodes,
        section,
        seed,
        memory_bytes=_of_nodes(trace.memory_bytes, rows),
        up_bps=_of_nodes(trace.up_bps, rows),
        down_bps=_of_nodes(trace.down_bps, rows),
    )


def check_memory(devices: Devices, needed_bytes: float) -> None:
    """Refuse devices that cannot hold what training takes.

    Raises:
        ConfigError: names the first such node, and how many there are.
    """
    small = [node for node, held in enumerate(devices.memory_bytes or ()) if held < needed_bytes]
    if small:
        assert devices.memory_bytes is not None
        held = devices.memory_bytes[small[0]]
        raise ConfigError(
            f"devices.trace: node {small[0]} has {held:.0f} bytes of memory, and training takes {needed_bytes:.0f} "
            f"(parameters, gradients, optimizer, one batch); {len(small)} of {len(devices.memory_bytes)} nodes have "
            "too little: take a smaller model or batch, or other devices"
        )


def _read(section: DevicesSection, nodes: int, seed: int, batch_size: int) -> DeviceTrace:
    if section.trace == "phones":
        return fedscale.phones(nodes, seed)
    if Path(section.trace).suffix in SUFFIXES:
        return read_devices(section.trace)
    return fedscale.read_devices(section.trace, section.seconds_unit, batch_size)


def _rows(trace: DeviceTrace, section: DevicesSection, nodes: int, seed: int) -> np.ndarray:
    """The row of each node, int64 [nodes]."""
    if section.assign == "draw" or (section.assign == "auto" and not (trace.numbered and nodes <= len(trace))):
        return draw_rows(len(trace), nodes, seed, "devices")
    if not trace.numbered:
        raise ConfigError(f'devices.assign: {trace.source}: does not number its rows by node; allowed: "auto", "draw"')
    if nodes > len(trace):
        raise ConfigError(
            f"devices.assign: {trace.source}: has {len(trace)} rows for {nodes} nodes; add rows, or allow rows to be "
            'drawn more than once with "draw"'
        )
    return np.arange(nodes)


def _reference(trace: DeviceTrace, reference_flops: float | None) -> np.ndarray | float:
    """FLOPs of one sample that the trace's seconds are for: of each row, or of all."""
    if reference_flops is not None:
        return reference_flops
    if trace.flops_per_sample is None:
        raise ConfigError(
            f"devices.reference_model: {trace.source}: does not tell which model its seconds are for; name it, or set "
            "devices.reference_flops"
        )
    return trace.flops_per_sample


def _of_nodes(column: np.ndarray | None, rows: np.ndarray) -> list[float] | None:
    return None if column is None else column[rows].tolist()
