"""The bytes that a report names are those that sockets were handed: counted frame by frame, by nobody who reports."""

from __future__ import annotations

import shutil
import struct
from collections import Counter
from pathlib import Path

import pytest

from test_parity import arm

CLIENTS = 3
SMALL, ANNOUNCE, CHUNK = 1, 2, 3
ANNOUNCE_BYTES, CHUNK_BYTES = 1 + 8, 1 + 8 + 4 + 8
UPLOADS = {
    "whole models": ({"algorithm": "weighted-average"}, SMALL),
    "a byte a parameter": ({"algorithm": "ensemble-label-probabilities", "upload": "int8"}, SMALL),
    "models and statistics": ({"algorithm": "regmean"}, ANNOUNCE),
    "statistics alone": ({"algorithm": "ridge"}, ANNOUNCE),
}


def frames(folder):
    """What all processes have handed to their sockets: ``(frame, whether another part follows)``, sender by sender."""
    for path in sorted(folder.glob("frames-*")):
        for line in path.read_text().splitlines():
            size, more, text = line.split()
            frame = bytes.fromhex(text)
            assert len(frame) == int(size)
            yield frame, more == "1"


def carried(folder):
    """Bytes of headers and of payloads, and how many frames there were of each kind.

    The layout is spelled out here a second time: a byte of kind; then pairs of lengths with a header and a payload, or
    the number of a transfer and a header; pieces of a payload come as second parts behind 21 bytes that place them.
    """
    found, payload_next = Counter(), False
    for frame, has_more in frames(folder):
        if payload_next:
            found["payload"] += len(frame)
            payload_next = False
        elif frame[0] == SMALL:
            found["small"] += 1
            at = 1
            while at < len(frame):
                header, payload = struct.unpack_from("<II", frame, at)
                found["messages"] += 1
                found["header"] += header
                found["payload"] += payload
                at += 8 + header + payload
            assert at == len(frame)
        elif frame[0] == ANNOUNCE:
            found["announced"] += 1
            found["messages"] += 1
            found["header"] += len(frame) - ANNOUNCE_BYTES
        elif frame[0] == CHUNK:
            found["chunks"] += 1
            assert (len(frame), has_more) == (CHUNK_BYTES, True)
            payload_next = True
    return found


@pytest.mark.parametrize("name", UPLOADS)
def test_the_report_has_the_bytes_of_the_frames(starling, tmp_path, name):
    options, kind = UPLOADS[name]
    shutil.copy(Path(__file__).with_name("wiretap.py"), tmp_path)
    tables = {
        "nodes": CLIENTS + 1,
        "protocol": {"use": "oneshot", **options},
        "model": {"name": "mlp", "hidden": [100]},
        "training": {"lr": 0.1, "local_steps": 2},
        "mods": [{"use": "wiretap:Wiretap"}],
    }
    run = arm(starling, tmp_path, "real", tables)
    seen, told = carried(tmp_path), run.summary["oneshot"]["uploaded_bytes"]
    assert seen["messages"] == run.summary["messages"] == CLIENTS
    assert seen["header"] == told["control"]["total"]
    assert seen["payload"] == told["model"]["total"] + told["parts"]["total"] > 0
    assert seen["header"] + seen["payload"] == run.summary["bytes_sent"]
    assert run.summary["oneshot"]["sent_bytes"] == {"oneshot/upload/1": seen["header"] + seen["payload"]}
    assert seen["announced" if kind == ANNOUNCE else "small"] > 0
    assert (seen["chunks"] > 0) == (kind == ANNOUNCE)
