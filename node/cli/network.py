"""``starling network``: found a network, invite to it, see who is in it, and end what must end."""

from __future__ import annotations

import getpass
import json
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.errors import ConfigError

if TYPE_CHECKING:
    from node.daemon.nodefile import NodeFile
    from node.trust.authority import Authority
    from node.trust.folder import NetworkFolder

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_S = 3_650 * 86_400
_DEADLINE_S = 10.0
"""Of a round, where an experiment says none: of nodes on many machines one is away sooner or later."""

app = typer.Typer(help="A network's identity, invitations and members.", no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Option(help="The network's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FOLDER = Path("network")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it; default: the experiment's name.")] = "",
    experiment: Annotated[
        str, typer.Option(help="A TOML file, or the name of a bundled experiment.")
    ] = "digits-gossip",
    folder: Folder = FOLDER,
    listen: Annotated[str, typer.Option(help="host:port that the first node listens at.")] = "127.0.0.1:7600",
    advertise: Annotated[str, typer.Option(help="host:port that others reach it at, where that is another.")] = "",
    open: Annotated[bool, typer.Option("--open", help="Let anybody join without an invitation.")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Found a network for one experiment, with its first node, which admits the others."""
    import tomli_w

    from node.experiment.loading import load
    from node.experiment.setup import prepare
    from node.trust.folder import NetworkFolder

    asked = [*(sets or []), "clock=real"]
    config = load(experiment, asked, os.environ)
    address = _admission(listen, advertise)
    setup = prepare(config)  # what no node could start with is no network's
    waits_for_ever = getattr(setup.options, "deadline_s", None) == 0.0 and "deadline_s" not in config.protocol.options
    if waits_for_ever:
        config = load(experiment, [*asked, f"protocol.deadline_s={_DEADLINE_S}"], os.environ)
    text = tomli_w.dumps(config.model_dump(exclude_none=True))
    network = NetworkFolder.create(folder, name or config.name, text, config.nodes, address, open=open)
    peer = _found(network, listen, advertise)
    facts = {"id": network.settings.id, "name": network.settings.name, "folder": str(folder), "founder": peer}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"network {facts['name']}, id {facts['id']}, in {folder}: {config.nodes} nodes of {config.name}")
    if waits_for_ever:
        typer.echo(f"no round waits longer than {_DEADLINE_S:g} s for a node that is away (protocol.deadline_s)")
    typer.echo(f"start its first node:  starling node --config {folder / 'node.toml'}")
    typer.echo(f"invite another:        starling network invite --folder {folder}")
    if address.startswith(("127.", "localhost:", "[::1]:")):
        typer.echo(f"only this machine reaches {address}; for others: --listen 0.0.0.0:7600 --advertise HOST:7600")
    if open:
        typer.echo(f"it is open: anybody can join who has {_open_token(network)}")


@app.command()
def invite(
    folder: Folder = FOLDER,
    role: Annotated[str, typer.Option(help="learner, storage, compute or attacker.")] = "learner",
    expires: Annotated[str, typer.Option(metavar="TIME", help="30m, 24h, 7d: when it ends.")] = "24h",
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print an invitation: a secret, shown this once. Pass it on to whoever is to join."""
    from node.trust.certificate import Role
    from node.trust.token import MOST_USES

    if role not in list(Role):
        raise ConfigError(f"--role {role}: there is no such role; allowed: {', '.join(Role)}")
    if not 1 <= uses <= MOST_USES:
        raise ConfigError(f"--uses {uses}: allowed: 1 to {MOST_USES}")
    expires_s = int(time.time()) + _duration_s(expires)
    network = _opened(folder)
    bootstrap = network.bootstrap()
    with network.authority() as authority:
        token = authority.invite(Role(role), expires_s, uses, bootstrap)
    assert token.id is not None
    _note(network, "invite", f"{token.id.hex()}, {role}, {uses} uses, until {_when(expires_s)}")
    if as_json:
        facts = {
            "token": token.to_text(),
            "id": token.id.hex(),
            "role": role,
            "uses": uses,
            "expires": _when(expires_s),
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(token.to_text())
    typer.echo(f"invitation {token.id.hex()}: {role}, {uses} uses, until {_when(expires_s)}", err=True)


@app.command()
def show(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """The network, its invitations and its members."""
    network = _opened(folder)
    facts = _facts(network, network.seen(), time.time())
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key in ("name", "id", "experiment", "nodes", "admission", "open", "admission_key"):
        typer.echo(f"{key:<14} {facts[key]}")
    for row in facts["invitations"]:
        typer.echo(
            f"invitation     {row['id']} {row['role']:<8} {row['used']} of {row['uses']} used, "
            f"{'ended' if row['ended'] else 'ends'} {row['expires']}"
        )
    for row in facts["members"]:
        typer.echo(f"node {row['node']:<9} {row['peer']} {row['role']:<8} {row['state']}, ends {row['expires']}")


@app.command()
def revoke(
    member: Annotated[str, typer.Argument(metavar="NODE|PEER", help="A node's number, or a peer's id.")],
    folder: Folder = FOLDER,
    reason: Annotated[str, typer.Option(help="For the record; every member can read it.")] = "",
) -> None:
    """End a member's membership, for good: its key is never let in again."""
    from node.trust.certificate import id_of, id_text

    network, now_s = _opened(folder), time.time()
    if len(reason) > 200 or not reason.isprintable():
        raise ConfigError("--reason: allowed: up to 200 printable characters")
    with network.authority() as authority:
        if member.isdecimal():
            peers = authority.holders(int(member), now_s)
        else:
            try:
                peers = [id_of(member)]
            except ValueError:
                raise ConfigError(f"{member}: is neither a node's number nor a peer's id of 32 characters") from None
        if not peers:
            raise ConfigError(f"{member}: no node of that number is a member; 'starling network show' lists them")
        for peer in peers:
            revocation = authority.revoke(peer, now_s, reason)
            _note(network, "revoke", f"peer {id_text(peer)}, number {revocation.number}")
            typer.echo(f"peer {id_text(peer)} is revoked since {_when(revocation.at_s)}, as number {revocation.number}")


@app.command()
def rotate(
    folder: Folder = FOLDER,
    member: Annotated[
        Path | None,
        typer.Option(metavar="STATE", help="Replace a stopped member's keys, by its state folder, instead."),
    ] = None,
) -> None:
    """Replace the admission key, or a member's keys; what the old one has signed counts for overlap_days more."""
    if member is not None:
        _rekey(member)
        return
    network = _opened(folder)
    succession = network.rotate(time.time())
    _note(network, "rotate", f"admission key {succession.new_key.hex()}")
    typer.echo(f"admission key  {succession.new_key.hex()}, the old one's certificates end {_when(succession.until_s)}")


def _rekey(member: Path) -> None:
    from node.daemon.rekeying import rekey
    from node.trust.certificate import id_text

    certificate, until_s = rekey(member)
    peer = id_text(certificate.peer_id)
    typer.echo(f"node {certificate.node} is peer {peer} from its next start, its old keys end {_when(until_s)}")


def _opened(folder: Path) -> NetworkFolder:
    from node.trust.folder import NetworkFolder

    return NetworkFolder(folder)


def _founder(listen: str, advertise: str) -> NodeFile:
    from pydantic import ValidationError

    from node.daemon.nodefile import NodeFile

    try:
        return NodeFile(listen=listen, advertise=advertise)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None


def _admission(listen: str, advertise: str) -> str:
    """The address at which newcomers will find the founder."""
    from node.daemon.nodefile import Address

    settings = _founder(listen, advertise)
    address = Address.parse(settings.advertise or settings.listen)
    if not address.port:
        raise ConfigError("--listen: port 0 is another at every start, and invitations name it; allowed: 1 to 65535")
    return str(address)


def _found(network: NetworkFolder, listen: str, advertise: str) -> str:
    """Make the first node's file and keys, and let it in; gives its peer id."""
    import tomli_w

    from node.daemon.state import open_state
    from node.trust.certificate import Role, id_text
    from node.trust.files import write_private

    settings = _founder(listen, advertise)
    keys = {**settings.model_dump(mode="json", include={"listen", "advertise", "state"}), "network": "."}
    write_private(network.path / "node.toml", tomli_w.dumps({k: v for k, v in keys.items() if v != ""}).encode())
    with open_state(network.path / settings.state) as state, network.authority() as authority:
        certificate = authority.enrol(state.identity, Role.learner, time.time())
    peer = id_text(certificate.peer_id)
    _note(network, "create", f"network {network.settings.id}, founder {peer}")
    return peer


def _facts(network: NetworkFolder, authority: Authority, now_s: float) -> dict[str, Any]:
    from node.trust.certificate import TOLERANCE_S, id_text

    invitations = [
        {
            "id": invitation.entry.token.hex(),
            "role": invitation.entry.role.value,
            "uses": invitation.entry.uses,
            "used": len(invitation.users),
            "expires": _when(invitation.entry.expires_s),
            "ended": invitation.has_ended(now_s),
        }
        for invitation in authority.invitations
    ]
    members = []
    for held in authority.newest():
        revoked, ended = authority.revocations.is_revoked(held.peer_id, now_s), now_s > held.not_after_s + TOLERANCE_S
        members.append(
            {
                "node": held.node,
                "role": held.role.value,
                "peer": id_text(held.peer_id),
                "expires": _when(held.not_after_s),
                "state": "revoked" if revoked else "expired" if ended else "member",
            }
        )
    settings = network.settings.model_dump(include={"name", "id", "nodes", "admission", "open"})
    more = {"experiment": str(network.path / "experiment.toml"), "admission_key": authority.lineage.current.hex()}
    opened = {"token": _open_token(network)} if network.settings.open else {}
    return {**settings, **more, **opened, "invitations": invitations, "members": members}


def _open_token(network: NetworkFolder) -> str:
    return network.seen().open_token(network.bootstrap()).to_text()


def _note(network: NetworkFolder, action: str, what: str) -> None:
    try:
        actor = getpass.getuser()
    except (KeyError, OSError):  # in a container, a user without a name
        actor = f"user {os.getuid()}"
    try:
        network.audit.record(time.time(), actor, action, what)
    except OSError as error:  # what was decided is in the ledger, and counts
        typer.echo(f"starling: {action} is done, but not in the audit: {error.strerror}", err=True)


def _duration_s(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= _LONGEST_S:
        raise ConfigError(f"--expires {text}: write a number and s, m, h or d, for example 24h; at most ten years")
    return seconds


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
