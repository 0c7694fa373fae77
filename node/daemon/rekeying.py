"""A member goes on under other keys, while its node is stopped and the network is not.

The new keys are on the disk before anybody hears of them. The admission key certifies them beside the old ones, and
revokes these for a time to come; until then both are let in, so that nobody loses the member before its next start.
Whoever is interrupted does it again: asking twice gets the same answer.
"""

from __future__ import annotations

import time
from pathlib import Path

from node.daemon.belonging import bootstrap_of, is_invited
from node.daemon.renewal import ask
from node.daemon.state import State, next_identity, open_state, take_over
from node.errors import ConfigError
from node.identity import Identity
from node.trust.arrival import arrive
from node.trust.certificate import Certificate, peer_id
from node.trust.refusal import Refused
from node.trust.state import TRUST, load_trust
from node.trust.trust import Trust


def rekey(folder: Path) -> tuple[Certificate, int]:
    """Give the member with this state folder new keys; blocks while it asks for their certificate.

    Returns the certificate, and until when the old keys are let in, s since 1970.

    Raises:
        ConfigError: it is no folder of a member that was invited, its node is running, or the network has refused.
        TransportError: the admitting node does not answer.
    """
    if not is_invited(folder):
        raise ConfigError(f"--member {folder}: allowed: the state folder of a node that has joined with an invitation")
    with open_state(folder) as state:
        trust, old, new = load_trust(folder / TRUST), state.identity, next_identity(state)
        certificate = trust.holder(new.curve_public, time.time()) or _certified(trust, state, new)
        take_over(state)
    ends = trust.revocations.of(peer_id(old.signing_public))
    assert ends is not None, "it came with the certificate"
    return certificate, ends.at_s


def _certified(trust: Trust, state: State, new: Identity) -> Certificate:
    try:
        answer = ask(state.identity, new, trust.network, bootstrap_of(state))
        return arrive(trust, answer, new, time.time())
    except Refused as refused:
        raise ConfigError(f"--member {state.folder}: {refused.detail} ({refused.reason.value})") from None
