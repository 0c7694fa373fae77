"""The policies by name."""

from __future__ import annotations

from node.caching.arc import ARC
from node.caching.fifo import FIFO
from node.caching.gdsf import GDSF, LFUDA, LatencyGDSF
from node.caching.lfru import LFRU
from node.caching.lfu import LFU, InCacheLFU
from node.caching.lru import LRU
from node.caching.policy import Policy
from node.caching.s3fifo import S3FIFO
from node.caching.sieve import SIEVE
from node.caching.wtinylfu import WTinyLFU
from node.errors import ConfigError

POLICIES: dict[str, type[Policy]] = {
    "arc": ARC,
    "fifo": FIFO,
    "gdsf": GDSF,
    "gdsf-latency": LatencyGDSF,
    "in-cache-lfu": InCacheLFU,
    "lfru": LFRU,
    "lfu": LFU,
    "lfu-da": LFUDA,
    "lru": LRU,
    "s3-fifo": S3FIFO,
    "sieve": SIEVE,
    "w-tinylfu": WTinyLFU,
}
DEFAULT_POLICY = "w-tinylfu"
"""Near the best where popularity stays what it is, and still good where it drifts, or much is wanted once."""


def policy_named(name: str) -> type[Policy]:
    """The policy of a name. ConfigError for one that there is not."""
    if name not in POLICIES:
        raise ConfigError(f"cache policy {name!r} is unknown; allowed: {', '.join(POLICIES)}")
    return POLICIES[name]
