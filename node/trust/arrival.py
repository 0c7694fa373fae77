"""How one who has been welcomed comes to believe what it was told: by the token's key, and nothing else.

The network's id is the hash of its founding key, so the chain of admission keys can be followed from there; that the
token's key is in it tells our network from one that a stolen older key has branched off.
"""

from __future__ import annotations

from node.identity import Identity
from node.trust.certificate import Certificate
from node.trust.refusal import Reason, Refused
from node.trust.request import Turned, Welcome
from node.trust.succession import Lineage
from node.trust.token import Token
from node.trust.trust import Trust


def founding_key(token: Token, answer: Welcome | Turned) -> bytes:
    """The admission key that founded the token's network, to begin a Trust with; Refused if we were turned away, or
    what we were told does not lead from there to the token's key.
    """
    welcome = _welcomed(answer)
    first = welcome.successions[0].old_key if welcome.successions else token.admission_key
    lineage = Lineage(token.network, first)
    for succession in welcome.successions:
        if lineage.accepts(succession):
            lineage.extend(succession)
    if token.admission_key not in lineage:
        raise Refused(Reason.SIGNATURE, "the invitation's admission key is none of those that the network has had")
    return first


def arrive(trust: Trust, answer: Welcome | Turned, identity: Identity, now_s: float) -> Certificate:
    """Take in an answer of the admission link; gives our certificate. The revocations come before the members.

    A member whose certificate does not count by our own clock and keys is left out.

    Raises:
        Refused: we were turned away, or the answer is not this network's.
    """
    welcome = _welcomed(answer)
    trust.succeed(welcome.successions)
    for revocation in welcome.revocations:
        trust.revoke(revocation, now_s)
    if not welcome.certificate.binds(identity):
        raise Refused(Reason.KEY, "the certificate is for other keys than ours")
    trust.learn(welcome.certificate, now_s)
    for member in welcome.members:
        if trust.counts(member.certificate, now_s):
            trust.learn(member.certificate, now_s)
    return welcome.certificate


def _welcomed(answer: Welcome | Turned) -> Welcome:
    if isinstance(answer, Turned):
        raise Refused(answer.reason, f"the admitting node has refused: {_ADVICE.get(answer.reason, 'see its log')}")
    return answer


_ADVICE = {
    Reason.EXPIRED: "the invitation's time, or our certificate's, is over; ask for a new invitation",
    Reason.USED_UP: "the invitation has been used as often as it may be; ask for a new one",
    Reason.UNKNOWN_TOKEN: "it knows no such invitation, and the network is not open; ask for an invitation",
    Reason.REVOKED: "this node's key was revoked or replaced; a new folder makes a new key",
    Reason.FULL: "every node number of the experiment is taken",
    Reason.ROLE: "this node is a member already, in another role",
    Reason.RATE: "this node has just got a certificate; change its keys in ten minutes",
    Reason.NETWORK: "it admits to another network",
    Reason.KEY: "the request was for other keys than the link's",
}
