"""Layered objects for streaming: their content, and the digests by which a receiver knows it."""

import hashlib

import numpy as np

from node.streaming.assembly import LayerDigests

CHUNK_BYTES = 8


def sha(data):
    return hashlib.sha256(data).hexdigest()


def content(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(size) for size in sizes]


def digests_of(layers, chunk_bytes=CHUNK_BYTES):
    return [
        LayerDigests(sha(data), tuple(sha(data[at : at + chunk_bytes]) for at in range(0, len(data), chunk_bytes)))
        for data in layers
    ]
