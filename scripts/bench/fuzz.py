"""Everything that reads bytes of others, fed mutated and random ones: inputs a second, memory, and what crashed.

The surfaces are those of ``tests/unit/surfaces.py``, for strangers: the header of messages, the handshake in each of
its states, invitations, certificates, revocations, successions, requests and answers of admission, and what comes in
over HTTP; and those of ``tests/unit/peer_surfaces.py``, for members: what they say of members (and what the machines do
then), records, what is said at a door, decrees, words about bulk transfers and their manifests, frames of a link.

An input is a true one after a few changes, or noise. It passes where it gives a valid value or one StarlingError. Exits
with 1 where one did not, where one took more than a second of CPU, or where memory grew by over 16 MiB from the first
tenth to the end.

    scripts/bench/fuzz --inputs 1000000        a million over all surfaces
    scripts/bench/fuzz --surface token --hex 7374...   one input again
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "unit"))

from node.errors import StarlingError
from peer_surfaces import peer_surfaces
from surfaces import Surface, mutated, surfaces

MOST_GROWTH_BYTES = 16 << 20
MOST_S = 1.0
NOISE = 0.1
"""Part of the inputs that is no mutation of anything."""


class Outcome(NamedTuple):
    surface: str
    inputs: int
    taken: int
    wall_s: float
    slowest_s: float
    growth_bytes: int
    crashers: list[tuple[str, str]]
    """Inputs in hexadecimal, and what came of them."""


def crash(surface: Surface, data: bytes) -> str | None:
    """What is wrong with what came of an input; an empty text: it was taken; None: one StarlingError."""
    try:
        surface.feed(data)
    except StarlingError as error:
        return None if str(error).isprintable() else f"an error of more than one line: {error!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fuzz(job: tuple[str, int, int]) -> Outcome:
    name, seed, inputs = job
    (surface,) = (one for one in (*surfaces(), *peer_surfaces()) if one.name == name)
    rng = np.random.default_rng([seed, *name.encode()])
    taken, slowest_s, crashers, first_bytes = 0, 0.0, [], 0
    began_s = time.perf_counter()
    for number in range(inputs):
        if rng.random() < NOISE:
            data = rng.bytes(int(rng.integers(400)))
        else:
            data = mutated(rng, surface.seeds)
        fed_s = time.process_time()
        what = crash(surface, data)
        slowest_s = max(slowest_s, time.process_time() - fed_s)
        taken += what == ""
        if what:
            crashers.append((data.hex(), what))
        if number == inputs // 10:
            gc.collect()
            first_bytes = psutil.Process().memory_info().rss
    gc.collect()
    growth_bytes = psutil.Process().memory_info().rss - first_bytes
    return Outcome(name, inputs, taken, time.perf_counter() - began_s, slowest_s, growth_bytes, crashers)


def again(name: str, data: bytes) -> int:
    (surface,) = (one for one in (*surfaces(), *peer_surfaces()) if one.name == name)
    surface.feed(data)
    return 0


def main() -> int:
    names = [surface.name for surface in (*surfaces(), *peer_surfaces())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all surfaces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", choices=names, help="this one only")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hex", help="feed one input to --surface, and show what is raised")
    args = parser.parse_args()
    if args.hex:
        return again(args.surface or parser.error("--hex needs --surface"), bytes.fromhex(args.hex))
    chosen = [args.surface] if args.surface else names
    each = -(-args.inputs // len(chosen))
    print(f"seed {args.seed}, {each * len(chosen):,} inputs")
    print(f"{'surface':<12} {'inputs':>9} {'taken':>8} {'a second':>9} {'slowest ms':>10} {'growth MiB':>10} crashers")
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        outcomes = []
        for one in pool.imap(fuzz, [(name, args.seed, each) for name in chosen]):
            outcomes.append(one)
            print(
                f"{one.surface:<12} {one.inputs:>9,} {one.taken:>8,} {one.inputs / one.wall_s:>9,.0f} "
                f"{one.slowest_s * 1e3:>10.1f} {one.growth_bytes / (1 << 20):>10.1f} {len(one.crashers)}",
                flush=True,
            )
    for outcome in outcomes:
        for data, what in outcome.crashers[:5]:
            print(f"{outcome.surface}: {what}\n  {data}")
    bad = [one for one in outcomes if one.crashers or one.slowest_s > MOST_S or one.growth_bytes > MOST_GROWTH_BYTES]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
