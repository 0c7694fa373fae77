"""Which cipher is the fastest on this machine: without AES instructions the order turns."""

from __future__ import annotations

import functools
import time

from node.transfer.sealing import CIPHERS, KEY_BYTES, TAG_BYTES

TRIAL_S = 0.02
"""How long the trial of all ciphers together takes."""

_TRIAL_BYTES = 256 << 10


@functools.cache
def ciphers() -> tuple[str, ...]:
    """All ciphers, the fastest here first; the first call takes ``TRIAL_S``."""
    return tuple(sorted(CIPHERS, key=_seconds_a_call))


def _seconds_a_call(cipher: str) -> float:
    aead = CIPHERS[cipher](bytes(KEY_BYTES))
    plain, sealed = bytes(_TRIAL_BYTES), bytearray(_TRIAL_BYTES + TAG_BYTES)
    fastest_s, began_s = float("inf"), time.perf_counter()
    while time.perf_counter() - began_s < TRIAL_S / len(CIPHERS):
        call_s = time.perf_counter()
        aead.encrypt_into(bytes(12), plain, None, sealed)
        fastest_s = min(fastest_s, time.perf_counter() - call_s)
    return fastest_s
