"""How a node comes to belong to a network: it has founded it, it returns to it, or it has been invited.

::

    trust.jsonl       whom it believes: the network's keys, certificates, revocations
    admitted.toml     what the network's nodes run
    network.json      the network's name, and where its admitting nodes are

are in the state folder of a node that was invited. The founder's experiment is in the network's own folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from node import durable
from node.daemon.introduction import Topic
from node.daemon.nodefile import NodeFile
from node.daemon.state import State
from node.daemon.trail import Trail
from node.errors import ConfigError, TransportError
from node.live.door import visit
from node.trust.arrival import arrive, founding_key
from node.trust.certificate import Certificate, id_text
from node.trust.folder import EXPERIMENT, NetworkFolder
from node.trust.refusal import Refused
from node.trust.request import Join, Member, Welcome, decode_answer, encode
from node.trust.skew import WARN_S
from node.trust.state import TRUST, begin_trust, load_trust
from node.trust.token import Bootstrap, Token
from node.trust.trust import Trust

_NETWORK, _ADMITTED = "network.json", "admitted.toml"
"""Not ``experiment.toml``: that is part of the result, with what this node's environment has changed."""
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Belonging:
    """One node's membership of one network."""

    name: str
    """The network's, for people."""
    trust: Trust
    certificate: Certificate
    experiment: Path
    bootstrap: tuple[Bootstrap, ...]
    """The admitting nodes."""
    members: tuple[Member, ...] = ()
    """Who was there when this node was admitted, a moment ago."""
    folder: NetworkFolder | None = None
    """Of the network, where this node admits others to it."""

    @property
    def network(self) -> str:
        """The network's id, as cards name it."""
        return id_text(self.trust.network)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    bootstrap: tuple[Bootstrap, ...]


def belong(settings: NodeFile, state: State, token: Token | None) -> Belonging:
    """Find out, or have the network say, which of its nodes this is. Blocks while it asks.

    Raises:
        ConfigError: there is nothing that it could belong to, or it was refused.
        TransportError: no admitting node answers.
    """
    if settings.network is not None:
        return _of_founder(NetworkFolder(settings.network), state)
    path = state.folder / TRUST
    trust = load_trust(path) if path.exists() else None
    if trust is not None:
        if token is not None and token.network != trust.network:
            raise ConfigError(
                f"--join: an invitation to network {id_text(token.network)}, but {state.folder} is that of a member of "
                f"{id_text(trust.network)}; name another --state"
            )
        certificate = trust.holder(state.identity.curve_public, time.time())
        if certificate is not None:
            return _returned(trust, certificate, state)
    if token is None:
        why = trust and trust.why_not(state.identity.curve_public, time.time())
        raise ConfigError(
            f"--join: {state.folder} holds no membership that counts{f' ({why})' if why else ''}; pass an invitation"
        )
    return _joined(trust, token, state)


def _of_founder(folder: NetworkFolder, state: State) -> Belonging:
    path, settings, now_s = state.folder / TRUST, folder.settings, time.time()
    authority = folder.seen()
    trust = load_trust(path) if path.exists() else begin_trust(path, settings.network, bytes.fromhex(settings.key))
    if trust.network != settings.network:
        raise ConfigError(f"state: {state.folder} is that of a member of another network than {folder.path}")
    trust.succeed(authority.lineage.successions)
    for revocation in authority.in_force(now_s):
        trust.revoke(revocation, now_s)
    for certificate in authority.members(now_s):
        trust.learn(certificate, now_s)
    own = trust.holder(state.identity.curve_public, now_s)
    if own is None:
        raise ConfigError(
            f"state: {state.folder} holds keys that are no member's of {folder.path}; restore the founder's state"
        )
    return Belonging(settings.name, trust, own, folder.path / EXPERIMENT, (), folder=folder)


def is_invited(folder: Path) -> bool:
    """Whether a state folder is that of a member that has not founded its network."""
    return (folder / TRUST).is_file() and (folder / _NETWORK).is_file()


def bootstrap_of(state: State) -> tuple[Bootstrap, ...]:
    """The admitting nodes that a member which was invited knows. ConfigError where they cannot be read."""
    return _kept(state).bootstrap


def _kept(state: State) -> _Kept:
    try:
        return msgspec.json.decode((state.folder / _NETWORK).read_bytes(), type=_Kept)
    except (OSError, ValueError) as error:
        raise ConfigError(f"state: {state.folder / _NETWORK} cannot be read: {error}; restore it") from None


def _returned(trust: Trust, certificate: Certificate, state: State) -> Belonging:
    kept = _kept(state)
    return Belonging(kept.name, trust, certificate, state.folder / _ADMITTED, kept.bootstrap)


def _joined(trust: Trust | None, token: Token, state: State) -> Belonging:
    now_s = time.time()
    try:
        welcome = _asked(token, state)
        if trust is None:
            trust = begin_trust(state.folder / TRUST, token.network, founding_key(token, welcome))
        # Before the certificate is kept: with it, the node is a member and needs these.
        durable.replace(state.folder / _ADMITTED, welcome.experiment.encode())
        durable.replace(state.folder / _NETWORK, msgspec.json.encode(_Kept(welcome.name, token.bootstrap)))
        certificate = arrive(trust, welcome, state.identity, now_s)
    except Refused as refused:
        raise ConfigError(f"--join: {refused.detail} ({refused.reason.value})") from None
    if abs(welcome.time_s - now_s) >= WARN_S:
        structlog.get_logger().warning("clock differs", ahead_s=round(now_s - welcome.time_s))
    what = f"network {id_text(trust.network)}, as node {certificate.node}, {certificate.role.value}"
    Trail(state.folder, certificate.node).note("operator", "join", what)
    return Belonging(
        welcome.name, trust, certificate, state.folder / _ADMITTED, token.bootstrap, members=welcome.members
    )


def _asked(token: Token, state: State) -> Welcome:
    """Ask the admitting nodes that the token names, one after the other."""
    token.check(time.time())
    request = bytes([Topic.ADMISSION]) + encode(Join.by(state.identity, token))
    troubles: list[TransportError] = []
    for admitting in token.bootstrap:
        address = f"tcp://{admitting.address}"
        try:
            data = visit(state.identity, address, admitting.curve_key, lambda ask: ask(request), _ANSWER_S)
        except TransportError as error:
            troubles.append(error)
            continue
        answer = decode_answer(data)
        if isinstance(answer, Welcome):
            return answer
        founding_key(token, answer)  # says why we were turned away
    raise troubles[-1]
