"""A member that lies about another: refuted a few times it is not believed, and nobody is kept busy by it."""

import numpy as np
import pytest

from membership_members import Keyed, alive, dead, left, member, of, suspect
from node.clock import VirtualClock
from node.membership import PRESETS, Persist, Received, Send, Start, State, Statement, Swim
from node.membership.credit import _MOST_PAIRS, ALLOWED, WITHIN_S, Credit
from node.membership.vocabulary import Gossip
from node.sim.swarm import Swarm

LIAR, VICTIM, NODES = 0, 5, 8
LAN = PRESETS["lan"]


class Liar(Swim):
    """Calls the newest word of one peer suspect or dead, to everybody, at most ten times a second."""

    state = State.SUSPECT
    lied_s = 0.0

    def step(self, event, now):
        actions = super().step(event, now)
        word = self._view.words.get(VICTIM)
        if word is None or now < self.lied_s + 0.1:
            return actions
        self.lied_s = now
        accusation = Statement(self.state, VICTIM, word.incarnation, self.me, b"")
        lie = accusation._replace(signature=Keyed(self.me).sign(accusation.signed_bytes))
        return [*actions, Send(tuple(peer for peer in range(NODES) if peer != self.me), Gossip((lie,)))]


class Story:
    """Eight members, one of which lies; what the others made of it."""

    def __init__(self, state, for_s):
        self.clock = VirtualClock()
        self.rng = np.random.default_rng(3)
        self.liar = type("Lying", (Liar,), {"state": state})
        self.swarm = Swarm(self.clock, NODES, self.launch, self.path)
        for node in range(NODES):
            self.clock.post(0.1 * node, self.swarm.up, node)
        self.swarm.run(20.0)
        self.before = self.machine(VICTIM).incarnation
        self.gone_s = 0.0
        for _ in range(int(for_s * 10)):
            self.swarm.run(0.1)
            honest = [node for node in range(NODES) if node not in (LIAR, VICTIM)]
            self.gone_s += 0.1 * np.mean([VICTIM not in self.machine(node).peers() for node in honest])

    def machine(self, node):
        return self.swarm.hosts[node].machine

    def launch(self, node, kept):
        machine = self.liar if node == LIAR else Swim
        made = machine(node, kept, b"record %d" % node, LAN, np.random.default_rng([7, node]), Keyed(node))
        return made, Start(tuple(seed for seed in (1, 2) if seed != node))

    def path(self, sender, to):
        return 0.002 + 0.01 * self.rng.random()

    def end(self):
        self.clock.close()
        return self


@pytest.mark.parametrize("state", [State.SUSPECT, State.DEAD])
def test_a_liar_cannot_keep_a_member_busy_or_out(state):
    """Ten lies a second for two minutes. Without limits: 677 objections, or 62 of the 120 s out, and self-doubt."""
    story = Story(state, 120.0).end()
    victim = story.machine(VICTIM)
    least_s, _ = LAN.suspicion_s(NODES)
    objections = victim.incarnation - story.before
    assert 1 <= objections <= ALLOWED + 120.0 / (least_s / 2)
    assert story.gone_s < 2.0
    assert victim.health.score == 0, "it does not take itself for the slow one"
    assert all(VICTIM in story.machine(node).peers() for node in range(NODES) if node != VICTIM)


def test_one_who_was_lied_about_is_still_missed_when_it_goes():
    """Also by the liar's word no more being believed: everybody else's is."""
    story = Story(State.SUSPECT, 30.0)
    story.swarm.down(VICTIM)
    story.swarm.run(60.0)
    honest = [node for node in range(NODES) if node not in (LIAR, VICTIM)]
    assert all(VICTIM not in story.machine(node).peers() for node in honest)
    story.end()


def test_an_honest_accuser_is_believed_until_it_has_been_wrong_so_often():
    swim, _ = member(1, (2, 3, 4))
    for incarnation in range(1, ALLOWED + 3):
        swim.step(Received(4, Gossip((suspect(2, 3, incarnation),))), 10.0 + incarnation)
        suspected = swim.sighting(2).state is State.SUSPECT
        assert suspected == (incarnation <= ALLOWED)
        swim.step(Received(4, Gossip((alive(2, incarnation + 1),))), 10.5 + incarnation)
        assert swim.sighting(2).state is State.ALIVE
    last = ALLOWED + 3
    swim.step(Received(4, Gossip((suspect(2, 4, last),))), 20.0)
    assert swim.sighting(2).state is State.SUSPECT, "another's word counts"
    swim.step(Received(4, Gossip((suspect(4, 3, 1),))), 20.0)
    assert swim.sighting(4).state is State.SUSPECT, "and its own about others"


def test_it_is_believed_again_after_a_while():
    swim, _ = member(1, (2, 3, 4))
    for incarnation in range(1, ALLOWED + 1):
        swim.step(Received(4, Gossip((dead(2, 3, incarnation), alive(2, incarnation + 1)))), float(incarnation))
    again = Received(4, Gossip((dead(2, 3, ALLOWED + 1),)))
    swim.step(again, WITHIN_S)
    assert swim.sighting(2).state is State.ALIVE
    swim.step(again, WITHIN_S + 2)
    assert swim.sighting(2).state is State.DEAD


def test_the_accused_objects_at_once_and_then_now_and_then():
    swim, _ = member(1, (2, 3))
    least_s, _ = LAN.suspicion_s(3)
    objected = []
    for tenth in range(200):
        now = 5.0 + tenth / 10
        actions = swim.step(Received(2, Gossip((suspect(1, 2, swim.incarnation),))), now)
        if of(actions, Persist):
            objected.append(now)
    assert objected[:ALLOWED] == [5.0, 5.1, 5.2]
    gaps = np.diff(objected[ALLOWED - 1 :])
    assert (gaps >= least_s / 2 - 1e-9).all()
    assert (gaps <= least_s / 2 + 0.1 + 1e-9).all(), "whoever believes it must hear the truth in time"
    actions = swim.step(Received(3, Gossip((suspect(1, 3, swim.incarnation),))), 25.0)
    assert of(actions, Persist), "another accuser is answered at once"


def test_what_is_forged_in_anothers_name_costs_that_one_nothing():
    swim, _ = member(1, (2, 3))
    for _ in range(3 * ALLOWED):
        swim.step(Received(3, Gossip((suspect(1, 2, swim.incarnation)._replace(signature=b"x"),))), 5.0)
    assert swim.refutations == 0
    assert of(swim.step(Received(2, Gossip((suspect(1, 2, swim.incarnation),))), 5.0), Persist)


def test_credit_takes_bounded_memory():
    credit = Credit()
    for accuser in range(_MOST_PAIRS + 10):
        for _ in range(ALLOWED):
            credit.refuted(accuser, 1, 1.0)
    assert len(credit._refuted_s) == _MOST_PAIRS
    assert not credit.is_spent(0, 1, 2.0)
    assert credit.is_spent(_MOST_PAIRS, 1, 2.0)
    assert not credit.is_spent(_MOST_PAIRS, 2, 2.0)
    assert credit.idle_s(_MOST_PAIRS, 1, 4.0) == 3.0


def test_a_farewell_refutes_nobody():
    """One who was called dead and says good-bye was not there to refute it."""
    swim, _ = member(1, (2, 3))
    for incarnation in range(1, 2 * ALLOWED, 2):
        swim.step(Received(3, Gossip((suspect(2, 3, incarnation),))), 5.0)
        swim.step(Received(3, Gossip((left(2, incarnation + 1), alive(2, incarnation + 2)))), 5.0)
    assert not swim._credit.is_spent(3, 2, 5.0)
