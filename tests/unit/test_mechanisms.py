"""Keys of nodes and the ops behind ``ctx.privacy``: signed, made for one life, never used twice for one receiver."""

import numpy as np
import pytest
import torch

from node.config import TopologySection
from node.errors import BadSignature, ConfigError, NotAMember, ProtocolError
from node.identity import Identity, Roster
from node.op import Key, Task
from node.privacy.mechanisms import RosterVoucher, SeededVoucher, insecure, secured, unrepeatable
from node.private import ShownKey
from node.testing import check_op
from node.topology import build

SUM = {"round": 3, "receiver": 9, "senders": (0, 1, 2), "recoverable": False}
KEY = Key(7, 0, 1)


def roster_of(count, network="run-1"):
    identities = [Identity.generate() for _ in range(count)]
    cards = [identity.card(node, f"tcp://127.0.0.1:{5000 + node}", network) for node, identity in enumerate(identities)]
    return identities, Roster(cards)


def acquainted(make, count=3):
    """The keys of some nodes that have all met."""
    keys = [make(node) for node in range(count)]
    meet(keys)
    return keys


def meet(keys):
    for node, mine in enumerate(keys):
        for peer, others in enumerate(keys):
            if peer != node:
                mine.meet(peer, others.shown)


def real_keys(count=3, network="run-1"):
    identities, roster = roster_of(count, network)
    return lambda node: secured(identities[node], roster, (4,)).keys(node)


def seeded_keys(seed=1, run="run"):
    return insecure(seed, run, (4,)).keys


WAYS = {"real": real_keys, "seeded": seeded_keys, "unrepeatable": lambda: unrepeatable((4,)).keys}


def masked(keys, model, **changes):
    return keys.masked.solve(Task((model,), {"weight": 0.25, **SUM, **changes}, KEY))


def summed(keys, model, **changes):
    words = sum(masked(key, model, **changes).numpy().view(np.uint32).astype(np.uint64) for key in keys)
    return (words % 2**32).astype(np.uint32).view(np.int32) / 2**20


# Keys


@pytest.mark.parametrize("way", WAYS)
def test_masks_of_acquainted_nodes_cancel(way):
    keys = acquainted(WAYS[way]())
    model = torch.tensor([1.0, -2.0, 0.5, 100.0])
    assert summed(keys, model) == pytest.approx(3 * 0.25 * model.numpy(), abs=3 / 2**21)
    assert np.abs(masked(keys[0], model).numpy() / 2**20 - 0.25 * model.numpy()).max() > 1


@pytest.mark.parametrize("way", WAYS)
def test_noise_of_an_edge_cancels(way):
    keys = acquainted(WAYS[way](), 2)
    static = {"round": 5, "deviation": 3.0}
    model = torch.zeros(1000, dtype=torch.float64)
    one, other = (
        key.decorrelate.solve(Task((model,), {"peers": (1 - node,), **static}, KEY)) for node, key in enumerate(keys)
    )
    assert torch.equal(one, -other)
    assert float(one.std()) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_a_key_is_believed_from_its_owner_alone(way):
    keys = [WAYS[way]()(0), *[None] * 2]
    make = WAYS[way]()
    alice, bob, carol = (make(node) for node in range(3))
    assert (len(bob.shown.public), len(bob.shown.signature)) == (32, 64)
    for forged in (
        ShownKey(carol.shown.public, bob.shown.signature),
        ShownKey(bob.shown.public, carol.shown.signature),
        ShownKey(bob.shown.public, bytes(64)),
        ShownKey(bob.shown.public, b""),
        ShownKey(b"", bob.shown.signature),
        carol.shown,  # a true key, of somebody else
        keys[0].shown,
    ):
        with pytest.raises(BadSignature):
            alice.meet(1, forged)
    alice.meet(1, bob.shown)
    alice.meet(1, bob.shown)


def test_a_key_of_another_run_is_not_believed():
    """What was signed for one run says nothing in another, though the same identities take part."""
    identities, roster = roster_of(2)
    _, other = roster_of(2)
    cards = [identity.card(node, "tcp://127.0.0.1:1", "run-2") for node, identity in enumerate(identities)]
    old = secured(identities[1], roster, (4,)).keys(1).shown
    with pytest.raises(BadSignature, match="node 1 has not signed"):
        secured(identities[0], Roster(cards), (4,)).keys(0).meet(1, old)
    with pytest.raises(NotAMember):
        secured(identities[0], roster, (4,)).keys(0).meet(5, old)
    with pytest.raises(BadSignature):
        insecure(1, "one", (4,)).keys(0).meet(1, insecure(1, "other", (4,)).keys(1).shown)
    assert other.network == roster.network


@pytest.mark.parametrize("useless", [bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_a_signed_key_that_nothing_can_be_agreed_with_is_refused(useless):
    """Points of low order would give a secret that everybody knows."""
    identities, roster = roster_of(2)
    voucher = RosterVoucher(identities[1], roster)
    statement = b"starling/key/1\0" + (1).to_bytes(8, "little") + (5).to_bytes(4, "little") + b"run-1" + useless
    keys = secured(identities[0], roster, (4,)).keys(0)
    with pytest.raises(BadSignature, match="the X25519 key of node 1 is of no use"):
        keys.meet(1, ShownKey(useless, voucher.sign(1, statement)))
    with pytest.raises(NotAMember, match="node 1 has shown no key"):
        masked(keys, torch.zeros(4), senders=(0, 1, 2))


@pytest.mark.parametrize("way", ["real", "unrepeatable"])
def test_every_life_has_a_key_of_its_own(way):
    """So that what an earlier life has masked can never be masked alike again; the others go on with the new key."""
    make = WAYS[way]()
    alice, bob, carol = acquainted(make)
    before = alice.masked
    again = make(1)
    assert again.shown.public != bob.shown.public
    model = torch.zeros(4)
    old = masked(alice, model)
    meet([alice, again, carol])
    assert not torch.equal(masked(alice, model), old)
    assert summed([alice, again, carol], model) == pytest.approx(np.zeros(4))
    # What was recorded with the old key is solved with it, whenever that is.
    assert torch.equal(before.solve(Task((model,), {"weight": 0.25, **SUM}, KEY)), old)


def test_secrets_that_follow_from_a_seed_are_the_same_in_every_process_and_marked():
    one, other = (acquainted(seeded_keys()) for _ in range(2))
    model = torch.ones(4)
    assert torch.equal(masked(one[0], model), masked(other[0], model))
    assert one[0].shown == other[0].shown
    assert not torch.equal(masked(one[0], model), masked(acquainted(seeded_keys(2))[0], model))
    assert not torch.equal(masked(one[0], model), masked(acquainted(seeded_keys(1, "else"))[0], model))
    voucher = SeededVoucher(1, b"run")
    with pytest.raises(BadSignature, match="node 4 has not signed what it is said to have said"):
        voucher.check(4, b"this", voucher.sign(4, b"that"))


# Sums


@pytest.mark.parametrize("recoverable", [False, True])
def test_a_node_takes_part_in_each_sum_once_and_in_rising_order(recoverable):
    keys = seeded_keys()(0)
    digest, shares = keys.begin(3, 9, (0, 1, 2), recoverable)
    assert digest == seeded_keys()(9).total(3, (0, 1, 2)).digest
    assert [len(each) for each in shares] == ([0, 60, 60] if recoverable else [])
    assert digest != keys.begin(3, 8, (0, 1, 2), recoverable)[0]
    for round in (3, 2):
        with pytest.raises(ProtocolError, match=f"round {round} for node 9 comes after round 3"):
            keys.begin(round, 9, (0, 1, 2), recoverable)
    later = [keys.begin(round, 9, senders, recoverable)[0] for round, senders in ((4, (0, 1, 2)), (5, (0, 1, 3)))]
    assert len({digest, *later}) == 3


@pytest.mark.parametrize(
    ("senders", "told"),
    [
        ((0, 1), "a masked sum of 2 senders for node 9; at least 3 are needed"),
        ((), "a masked sum of 0 senders"),
        ((0, 1, 9), "allowed are sorted, distinct nodes other than the receiver"),
        ((1, 0, 2), "sorted"),
        ((1, 2, 3), "node 0 is not among the senders"),
    ],
)
@pytest.mark.parametrize("recoverable", [False, True])
def test_a_sum_that_makes_no_sense_uses_up_no_round(senders, told, recoverable):
    keys = seeded_keys()(0)
    with pytest.raises(ProtocolError, match=told):
        keys.begin(0, 9, senders, recoverable)
    keys.begin(0, 9, (0, 1, 2), recoverable)


@pytest.mark.parametrize("way", WAYS)
def test_those_who_are_there_open_a_sum_without_the_others(way):
    make = WAYS[way]() if way != "real" else real_keys(10)
    keys, senders, alive = acquainted(make, 4), (0, 1, 2, 3), (0, 1, 3)
    receiver, begun = make(9), [node.begin(3, 9, senders, True) for node in keys]
    openings = {}
    for node in alive:
        sealed = [begun[peer][1][node] for peer in alive]
        openings[node] = keys[node].open(9, begun[node][0], alive, sealed)
        with pytest.raises(ProtocolError, match="no sum of node 9 to open"):
            keys[node].open(9, begun[node][0], alive, sealed)
    total = receiver.total(3, senders)
    added, removed = receiver.masks(total, alive, openings)
    assert receiver.masks(total, alive, {node: openings[node] for node in (0, 1)}) is None
    static = {**SUM, "senders": senders, "recoverable": True, "weight": 0.25}
    parts = [keys[node].masked.solve(Task((torch.full((4,), node + 1.0),), static, KEY)) for node in alive]
    found = insecure(0, "run", (4,)).unmasked.solve(Task(tuple(parts), {"added": added, "removed": removed}, KEY))
    assert found.tolist() == [0.25 * (1 + 2 + 4)] * 4


@pytest.mark.parametrize("way", ["real", "unrepeatable"])
def test_no_life_uses_a_mask_of_its_own_again(way):
    """The same sum in two lives of a node: other common masks, and another one of its own."""
    make = WAYS[way]()
    keys = acquainted(make)
    again = make(0)
    meet([again, *keys[1:]])
    model, shares = torch.zeros(64), [node.begin(3, 9, (0, 1, 2), True)[1] for node in (keys[0], again)]
    first, second = (masked(node, model, recoverable=True).numpy() for node in (keys[0], again))
    assert not np.intersect1d(first, second).size
    assert shares[0] != shares[1]


# Ops


def test_noise_is_the_key_s_or_nobody_s():
    model = torch.zeros(2000)
    for made in (insecure(1, "run", (2000,)), insecure(2, "other", (2000,))):
        check_op(made.noised, [model], deviation=0.5)
        check_op(made.zip_shares, [model], weights=(0.5, 0.25, 0.25), deviation=0.5)
        assert float(made.noised.solve(Task((model,), {"deviation": 0.5}, KEY)).std()) == pytest.approx(0.5, rel=0.1)
    secret = unrepeatable((2000,)).noised
    task = Task((model,), {"deviation": 0.5}, KEY)
    assert not torch.equal(secret.solve(task), secret.solve(task))
    assert float(secret.solve(task).std()) == pytest.approx(0.5, rel=0.1)


def test_the_factor_of_accelerated_gossip_is_that_of_the_round_s_graph():
    made = insecure(1, "run", (4,))
    ring = build(TopologySection(kind="ring"), 8, 0)
    assert made.gamma(ring, 0) == made.gamma(ring, 5) == pytest.approx(1.3976588036)
    assert made.gamma(build(TopologySection(kind="ring"), 16, 0), 0) == pytest.approx(1.6342040724)
    fresh = build(TopologySection(kind="random-regular", degree=3), 12, 0)
    assert len({made.gamma(fresh, round) for round in range(3)}) == 3
    with pytest.raises(ConfigError, match="W: a spectral gap needs a symmetric matrix"):
        made.gamma(build(TopologySection(kind="one-peer"), 8, 0), 0)


def test_an_identity_signs_what_its_card_can_check():
    identities, roster = roster_of(2)
    signature = identities[0].sign(b"purpose\0what")
    roster.card(0).check(b"purpose\0what", signature)
    for node, statement, false in (
        (1, b"purpose\0what", signature),
        (0, b"else\0what", signature),
        (0, b"purpose\0what", b""),
    ):
        with pytest.raises(BadSignature, match=f"node {node} has not signed"):
            roster.card(node).check(statement, false)
