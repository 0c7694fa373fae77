"""What an upload weighs: the formula of its algorithm, and a header; on the wire as in the summary."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loopback import WAIT_S, Party
from node import Ref, Spec
from node.codec import encode
from node.identity import Roster
from node.learn.oneshot.precision import narrowed, narrowed_spec, widened
from node.learn.tensors import from_buffer, to_buffer
from oneshots import NODES, Run
from protocols.oneshot import Upload

CLIENTS = NODES - 1
DIMENSION = 64 * 12 + 12 + 12 * 10 + 10  # of the small model
PER_PARAMETER = {"float32": 4, "float16": 2, "int8": 1}
UNIT_BYTES = 4


@pytest.mark.parametrize("precision", PER_PARAMETER)
@pytest.mark.parametrize("algorithm", ["average", "ties", "weighted-average", "ensemble-vote"])
def test_models_weigh_what_their_parameters_do(algorithm, precision):
    """b P of section 1.3, and the unit of whole numbers."""
    run = Run(protocol={"algorithm": algorithm, "upload": precision})
    each = PER_PARAMETER[precision] * DIMENSION + (UNIT_BYTES if precision == "int8" else 0)
    uploaded = run.own["uploaded_bytes"]
    assert uploaded["model"] == {"total": CLIENTS * each, "most": each}
    assert uploaded["parts"] == {"total": 0, "most": 0}
    assert run.summary["bytes_sent"] == CLIENTS * each + uploaded["control"]["total"]
    assert uploaded["control"]["most"] < 80


def test_a_histogram_weighs_its_numbers():
    """4 C at most: small counts take fewer bytes in the header."""
    without, with_counts = (
        Run(protocol={"algorithm": name}).own["uploaded_bytes"]["control"]["total"]
        for name in ("weighted-average", "ensemble-label-probabilities")
    )
    assert CLIENTS * 10 <= with_counts - without <= CLIENTS * 4 * 10


def test_the_header_is_its_fields_to_the_byte():
    run = Run(protocol={"algorithm": "ensemble-label-probabilities"})
    expected = 0
    for client in range(1, NODES):
        counts = run.setup.workload.label_histogram(client).tolist()
        model = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(("float32", (DIMENSION,), ())))
        fields = (model, (), sum(counts), counts, 0.0)
        expected += 2 + len("oneshot/upload/1") + len(msgspec.msgpack.encode(fields))
    assert run.own["uploaded_bytes"]["control"]["total"] == expected


@pytest.mark.parametrize("precision", PER_PARAMETER)
async def test_sockets_carry_as_many_bytes(precision):
    flat = narrowed(torch.linspace(-1, 1, DIMENSION), precision)
    spec = narrowed_spec(Spec((DIMENSION,)), precision)
    upload = Upload(model=Ref(0, spec, deque(maxlen=0)), parts=(), samples=3, counts=(3, 0), score=0.0)
    encoded = encode(upload, lambda ref: to_buffer(flat))
    sender, receiver = Party(1), Party(0)
    try:
        roster = Roster([sender.card, receiver.card])
        for party in (sender, receiver):
            party.transport.admit(roster)
        await sender.transport.send(0, encoded)
        await receiver.until(lambda: receiver.heard)
        assert receiver.transport.counters().bytes_received == len(encoded.header) + spec.size_bytes
        ((buffer,),) = receiver.buffers
        arrived = widened(from_buffer(buffer, spec), precision)
        assert torch.allclose(arrived, torch.linspace(-1, 1, DIMENSION), atol=1 / 127)
    finally:
        for party in (sender, receiver):
            await party.transport.close(WAIT_S)


finite = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


@given(finite)
def test_fewer_bytes_lose_no_more_than_they_must(values):
    flat = torch.from_numpy(values)
    assert torch.equal(widened(narrowed(flat, "float32"), "float32"), flat)
    assert torch.allclose(widened(narrowed(flat, "float16"), "float16"), flat, rtol=1e-3, atol=1e-7)
    most = float(flat.abs().max())
    assert float((widened(narrowed(flat, "int8"), "int8") - flat).abs().max()) <= most / 127 * 0.5001 + 1e-30


@given(finite, st.sampled_from([np.nan, np.inf, -np.inf]), st.sampled_from(["float16", "int8"]))
def test_what_is_not_finite_stays_so(values, odd, precision):
    values = values.copy()
    values[0] = odd
    assert not torch.isfinite(widened(narrowed(torch.from_numpy(values), precision), precision)).all()


def test_a_number_too_large_for_half_precision_is_noticed():
    assert torch.isinf(widened(narrowed(torch.tensor([1e9, 1.0]), "float16"), "float16")).any()


@pytest.mark.parametrize("precision", PER_PARAMETER)
def test_the_spec_is_known_before_the_value(precision):
    flat = torch.zeros(17)
    sent, spec = narrowed(flat, precision), narrowed_spec(Spec((17,)), precision)
    assert (tuple(sent.shape), str(sent.dtype)) == (spec.shape, f"torch.{spec.dtype}")
    assert torch.equal(widened(sent, precision), flat)


def test_a_byte_a_parameter_costs_little_accuracy():
    exact, coarse = (
        Run(protocol={"algorithm": "ensemble-probabilities", "upload": upload}) for upload in ("float32", "int8")
    )
    assert abs(exact.metric("accuracy") - coarse.metric("accuracy")) < 0.02
    assert exact.metric("loss") != coarse.metric("loss")
