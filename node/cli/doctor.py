"""What a working installation needs: for ``starling doctor``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NEEDED = (
    "torch numpy zmq aiohttp cryptography pydantic structlog uvloop safetensors msgspec networkx pyarrow sklearn psutil"
)
_OPTIONAL = {
    "datasets": "Hugging Face data sets: pip install 'starling-node[data]'",
    "distributed": "executor.kind = dask: pip install 'starling-node[cluster]'",
    "dp_accounting": "the tightest accountant, pld: pip install 'starling-node[privacy]'",
    "transformers": "serving and the test bed: pip install 'starling-node[serve]'",
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str = ""


def examine() -> Iterator[Finding]:
    """Look at this installation, most basic things first."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        f"Python {python}", sys.version_info >= (3, 11), "" if sys.version_info >= (3, 11) else "use 3.11 or newer"
    )
    yield _ours()
    for name in _NEEDED.split():
        yield _module(name)
    for name, remedy in _OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        yield Finding(f"{name} (optional)", True, "" if found else f"not installed; for {remedy}")
    yield _curve()
    yield _fork()
    yield _folder()


def _ours() -> Finding:
    import node

    here = Path(__file__).resolve().parent.parent
    theirs = Path(node.__file__ or "").resolve().parent
    detail = str(theirs) if here == theirs else f"{theirs} is another package: uninstall the unrelated 'node' from PyPI"
    return Finding("the package 'node' is Starling's", here == theirs, detail)


def _module(name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Finding(name, False, f"{error}; reinstall with: pip install starling-node")
    return Finding(f"{name} {getattr(module, '__version__', '')}".rstrip(), True)


def _curve() -> Finding:
    import zmq

    return Finding("ZeroMQ with CURVE", bool(zmq.has("curve")), "" if zmq.has("curve") else "install a pyzmq wheel")


def _fork() -> Finding:
    can = hasattr(os, "fork")
    return Finding("fork, for starling run --clock real", can, "" if can else "this system cannot; use --clock virtual")


def _folder() -> Finding:
    can = os.access(".", os.W_OK)
    return Finding("the current folder can be written to", can, "" if can else "give starling run an --out elsewhere")
