"""What FedScale's files of phones mean (Lai et al., ICML 2022), and phones drawn to look like them.

Both files are pickles of one dict by client id. Clients are taken in the order of their ids, and drawn by the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from node.errors import ConfigError
from node.sim.draws import generator
from node.sim.traces.device_table import DeviceTrace
from node.sim.traces.plain_pickle import load

_TRAINING = 3.0
"""Training costs a forward pass, which is what inference is, and a backward pass of about twice that."""
_BPS_PER_KBPS = 1000.0
_GIB = 2**30


class Presence(NamedTuple):
    """When one client is online, in every period of ``period_s`` seconds."""

    online_at_0: bool
    flips_s: list[float]
    """When it goes or comes, by time."""
    period_s: float


def read_devices(path: str, unit: Literal["sample", "step"], batch_size: int) -> DeviceTrace:
    """Read ``{client: {"computation": milliseconds, "communication": kilobits per second}}``.

    The milliseconds are of inference, for one sample, or for one step: then a sample's share is that of a full batch.

    Raises:
        ConfigError: the file is no such pickle; names the file and the client.
    """
    source = f"devices.trace: {path}"
    rows = [
        (_positive(entry, "computation", where), _positive(entry, "communication", where))
        for where, entry in _clients(path, "devices.trace")
    ]
    computation_ms, communication_kbps = np.array(rows).T
    seconds = _TRAINING * computation_ms / 1000 / (batch_size if unit == "step" else 1)
    bps = communication_kbps * _BPS_PER_KBPS
    return DeviceTrace(source, False, seconds, up_bps=bps, down_bps=bps)


def phones(nodes: int, seed: int) -> DeviceTrace:
    """Draw phones on Wi-Fi, one for each node: lognormal speeds and rates, the faster ones on somewhat faster links.

    Speed and rate are joined by a Gaussian copula with correlation 0.3. More nodes do not change the first ones.
    """
    normal = generator(seed, "phones").standard_normal((nodes, 2))
    slowness = normal[:, 0]
    rate = -0.3 * slowness + math.sqrt(1 - 0.3**2) * normal[:, 1]
    inference_ms = np.clip(60 * np.exp(0.8 * slowness), 5, 5_000)
    down_kbps = np.clip(12_000 * np.exp(0.9 * rate), 500, 300_000)
    up_share = 0.3 + 0.2 * generator(seed, "phone_up").random(nodes)
    sizes = np.array([2, 3, 4, 6, 8, 12]) * _GIB
    upto = np.cumsum([0.10, 0.15, 0.25, 0.25, 0.15])
    return DeviceTrace(
        "devices.trace: phones",
        True,
        _TRAINING * inference_ms / 1000,
        memory_bytes=sizes[np.searchsorted(upto, generator(seed, "phone_memory").random(nodes), "right")].astype(float),
        up_bps=up_share * down_kbps * _BPS_PER_KBPS,
        down_bps=down_kbps * _BPS_PER_KBPS,
    )


def read_presence(path: str) -> list[Presence]:
    """Read ``{client: {"active": [seconds], "inactive": [seconds], "finish_time": seconds}}``.

    A client is online from ``active[i]`` until just before ``inactive[i]``, and again in every period of
    ``finish_time``. One that goes before it first comes is online at 0; one that comes last stays to the period's end.

    Raises:
        ConfigError: the file is no such pickle; names the file and the client.
    """
    return [_presence(entry, where) for where, entry in _clients(path, "churn.trace")]


def _clients(path: str, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The clients by id; with each, how errors name it."""
    content = load(path, key)
    source = f"{key}: {path}"
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{source}: holds {_told(content)}; allowed: a dict of clients by id")
    for client in content:
        if type(client) is not int:
            raise ConfigError(f"{source}: client {_told(client)}: allowed: ids that are whole numbers")
    for client in sorted(content):
        if not isinstance(content[client], dict):
            raise ConfigError(f"{source}: client {client}: holds {_told(content[client])}; allowed: a dict")
        yield f"{source}: client {client}", content[client]


def _presence(entry: Mapping[str, Any], where: str) -> Presence:
    period_s = _positive(entry, "finish_time", where)
    comes, goes = _times(entry, "active", where, period_s), _times(entry, "inactive", where, period_s)
    online_at_0 = bool(goes) and (not comes or goes[0] < comes[0])
    first, second = (goes, comes) if online_at_0 else (comes, goes)
    if len(first) - len(second) not in (0, 1):
        raise ConfigError(
            f"{where}: active has {len(comes)} times and inactive {len(goes)}; they take turns, so allowed: as many, "
            "or one more of what comes first"
        )
    flips_s = [0.0] * (len(first) + len(second))
    flips_s[::2], flips_s[1::2] = first, second
    for one, next_one in pairwise(flips_s):
        if one > next_one:
            raise ConfigError(f"{where}: active and inactive do not take turns around {next_one:g} s; sort or merge")
    return Presence(online_at_0, flips_s, period_s)


def _times(entry: Mapping[str, Any], name: str, where: str, period_s: float) -> list[float]:
    times: Any = entry.get(name)
    if not isinstance(times, list):
        _refuse(entry, name, where, "a list of seconds")
    for i, time_s in enumerate(times):
        if type(time_s) not in (int, float) or not 0 <= time_s <= period_s:
            raise ConfigError(f"{where}: {name}[{i}] is {_told(time_s)}; allowed: 0 to finish_time, {period_s:g}")
        if i and time_s < times[i - 1]:
            raise ConfigError(f"{where}: {name}[{i}] is {time_s:g}, before the time in front of it; sort them")
    return [float(time_s) for time_s in times]


def _positive(entry: Mapping[str, Any], name: str, where: str) -> float:
    value: Any = entry.get(name)
    if type(value) not in (int, float) or not 0 < value < 1e300:
        _refuse(entry, name, where, "a finite number above 0")
    return float(value)


def _refuse(entry: Mapping[str, Any], name: str, where: str, allowed: str) -> NoReturn:
    if name not in entry:
        there = ", ".join(map(_told, islice(entry, 8)))
        raise ConfigError(f"{where}: has no {name!r}; it has: {there or 'nothing'}")
    raise ConfigError(f"{where}: {name} is {_told(entry[name])}; allowed: {allowed}")


def _told(value: object) -> str:
    """A value in an error: never the whole of a large one, and never a walk through one that contains itself."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list | tuple) else repr(value)[:40]
