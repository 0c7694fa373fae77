"""``starling node``: which of the ways to be a node is meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from node.cli.attack import attack_options, with_attacker
from node.config import ExperimentConfig
from node.daemon.nodefile import load_settings, own_experiment
from node.errors import ConfigError
from node.trust.certificate import Certificate, Role
from node.trust.state import TRUST
from node.trust.token import MOST_TEXT, PREFIX, Token


def run_one(config: Path | None, join: str, flags: Mapping[str, str]) -> int:
    """Run a node until it is told to stop; gives the exit status.

    Args:
        config: the node's file; None: ``node.toml`` of the current folder if it is there.
        join: an invitation, or where one is to be read; empty: none.
        flags: keys of the node's file that override it.
    """
    token = read_token(join or os.environ.get("STARLING_JOIN", ""))
    has_joined = (Path(flags.get("state", "state")) / TRUST).is_file()
    if config is None and (Path("node.toml").is_file() or not (token or has_joined)):
        config = Path("node.toml")
    environ = {name: value for name, value in os.environ.items() if name != "STARLING_JOIN"}
    settings = load_settings(config, environ, flags)
    from node.daemon.process import run_member, run_node

    if token is not None or settings.network is not None or (settings.state / TRUST).exists():
        return run_member(settings, token, environ)
    return run_node(settings, own_experiment(settings, environ, str(config)))


def attack_one(kind: str, join: str, sets: Sequence[str], flags: Mapping[str, str]) -> int:
    """Join a network as an attacker of some kind, and run until told to stop; gives the exit status.

    Args:
        sets: ``attack.key=value``: the attack's own keys.
    """
    options = attack_options(sets)
    if len(options) != len(sets):
        raise ConfigError("--set: with --join the experiment is the network's; allowed: attack.KEY=VALUE")

    token = read_token(join)
    if token is not None:
        _check_attacks(token.role)

    def attacking(config: ExperimentConfig, certificate: Certificate) -> ExperimentConfig:
        _check_attacks(certificate.role)
        return with_attacker(config, kind, [certificate.node], options)

    from node.daemon.process import run_member

    return run_member(load_settings(None, os.environ, flags), token, os.environ, attacking)


def _check_attacks(role: Role) -> None:
    if role is not Role.attacker:
        raise ConfigError(f"--join: for a {role.value}; an attacker needs an invitation made with --role attacker")


def read_token(join: str) -> Token | None:
    """The invitation that was passed, itself or in a file or on standard input; None: none was.

    Raises:
        ConfigError: there is none there.
    """
    if not join:
        return None
    if join == "-":
        return Token.from_text(sys.stdin.read(MOST_TEXT + 1))
    if join.startswith(PREFIX[:8]) and not Path(join).is_file():
        return Token.from_text(join)
    try:
        with Path(join).open(encoding="ascii", errors="replace") as file:
            return Token.from_text(file.read(MOST_TEXT + 1))
    except OSError as error:
        raise ConfigError(
            f"--join: neither an invitation nor a file that can be read ({error.strerror}); allowed: what "
            "'starling network invite' has printed, a file that holds it, or -"
        ) from None
