"""The file of one real node: which node of which experiment it is, where it listens, and what it keeps where."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from node.config import ExperimentConfig, Positive, Section
from node.errors import ConfigError
from node.experiment.loading import NODE_PREFIX, explain, load
from node.live.bulk import LEAST_RATE_BPS

_PATHS = ("state", "cards", "network")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """A host (an IPv6 one without its brackets) and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``; ValueError for anything else."""
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 65_535:
            raise ValueError(f"{text!r} is not an address; write host:port, an IPv6 host in brackets: '127.0.0.1:7600'")
        return cls(match["host"].strip("[]"), int(match["port"]))

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of the machine, and so for none that others could use."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(text: str) -> str:
    Address.parse(text)
    return text


def _address_or_none(text: str) -> str:
    return _address(text) if text else text


class NodeFile(Section):
    """The whole file. Paths in it are relative to it."""

    experiment: str = "digits-gossip"
    """The experiment's TOML file, or the name of a bundled one; the same for all of its nodes."""
    node: int = Field(0, ge=0)
    """Which of the experiment's nodes this is, counted from 0; no two may have the same number."""
    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:7600"
    """``host:port`` that peers' links come in at; port 0: any free one, another at each start."""
    advertise: Annotated[str, AfterValidator(_address_or_none)] = Field("", validate_default=True)
    """``host:port`` that peers are told, where it is not ``listen``: behind a container's or router's address."""
    state: Path = Path("state")
    """Folder of what belongs to this node alone: its keys, checkpoints and result. On a local disk; made if missing."""
    cards: Path = Path("cards")
    """Folder with every node's card: a shared volume, or copied by hand. Who can write to it decides who takes part."""
    network: Path | None = None
    """Folder of the network that this node has founded, and admits others to; then there is no use for ``cards``."""
    outbound: bool = False
    """Nobody can dial this node (behind a router's address translation, say): it opens all of its links itself."""
    multicast: bool = False
    """Whether members on the same local network may find this one, and it them, by multicast: addresses, not trust."""
    timing: Literal["lan", "wan", "host"] = "lan"
    """How often members of a network look for one another: on a local network, over the Internet, on one machine."""
    admin: Annotated[str, AfterValidator(_address_or_none)] = "127.0.0.1:7601"
    """``host:port`` for health, metrics and control over HTTP; empty: none."""
    bulk_port: int = Field(0, ge=0, le=65_535)
    """Port, at the host of ``listen``, that members fetch large models from; 0: any free one."""
    bulk_advertise_port: int = Field(0, ge=0, le=65_535)
    """Port that they are told, where it is not that: behind a container's or router's address. 0: the one that is."""
    bulk_rate_bps: float | None = Field(None, ge=LEAST_RATE_BPS)
    """Bits per second that all of them together may fetch at; absent: as fast as the network goes."""
    low_memory: bool = False
    """For machines with little of it: freed memory goes back at once, and peers may send 64 MiB at a time at most."""
    linger_s: float = Field(0.5, ge=0, le=3)
    """Seconds that messages on their way out are given when the node stops."""
    drain_s: Positive = 60.0
    """Seconds that a node that drains may take to finish its round; then it leaves, and that round is lost."""
    stuck_s: Positive = 600.0
    """Seconds after which one operation still at work (a long training, say) makes ``/healthz`` fail."""

    @field_validator("outbound")
    @classmethod
    def _dials(cls, outbound: bool, info: ValidationInfo) -> bool:
        if outbound and info.data.get("network") is not None:
            raise ValueError("the founder is where others join, so it has to be dialled; allowed: false")
        if outbound and info.data.get("advertise"):
            raise ValueError("what nobody can dial has no address to advertise; leave one of the two out")
        return outbound

    @field_validator("advertise")
    @classmethod
    def _reachable(cls, advertise: str, info: ValidationInfo) -> str:
        listen = info.data.get("listen", "127.0.0.1:7600")
        if not advertise and Address.parse(listen).is_wildcard:
            raise ValueError(
                f"listen = {listen!r} means every address of this machine; say which one peers connect to, "
                "for example advertise = '192.0.2.7:7600'"
            )
        if advertise and Address.parse(advertise).is_wildcard:
            raise ValueError(f"{advertise!r} is no address that peers can connect to; name one of this machine's")
        return advertise


def load_node(path: Path, environ: Mapping[str, str]) -> tuple[NodeFile, ExperimentConfig]:
    """Read a node's file and its experiment's. Raises as :func:`load_settings`."""
    settings = load_settings(path, environ)
    return settings, own_experiment(settings, environ, str(path))


def load_settings(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> NodeFile:
    """Read a node's file.

    Args:
        path: the TOML file; None: there is none, and paths are relative to the current folder.
        environ: ``STARLING_NODE__KEY`` overrides the file; paths are then relative to the current folder.
        flags: override both.

    Raises:
        ConfigError: one line that names the file, the key, and what is allowed.
    """
    values = {} if path is None else _read(path)
    flags = flags or {}
    overrides = {
        name.removeprefix(NODE_PREFIX).lower(): value for name, value in environ.items() if name.startswith(NODE_PREFIX)
    }
    try:
        return NodeFile.model_validate({**values, **overrides, **flags})
    except ValidationError as error:
        key = str(next(iter(error.errors()[0]["loc"]), ""))
        source = f"environment {NODE_PREFIX}{key.upper()}" if key in overrides else str(path)
        raise ConfigError(f"{f'--{key}' if key in flags else source}: {explain(error.errors(), NodeFile)}") from None


def own_experiment(settings: NodeFile, environ: Mapping[str, str], source: str) -> ExperimentConfig:
    """The experiment that a node's file, ``source``, names. ConfigError, too, where it has no such node."""
    config = load_experiment(settings.experiment, environ)
    if settings.node >= config.nodes:
        most = config.nodes - 1
        raise ConfigError(f"{source}: node: {config.name} has no node {settings.node}; allowed: 0 to {most}")
    return config


def load_experiment(experiment: str, environ: Mapping[str, str]) -> ExperimentConfig:
    """A node's experiment: a file or a bundled name, with ``STARLING_TABLE__KEY`` over it. Raises as load_settings."""
    others = {name: value for name, value in environ.items() if not name.startswith(NODE_PREFIX)}
    return load(experiment, ["clock=real"], others)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}; write a node's file, or name it with --config") from None
    folder = path.parent.resolve()
    for key in _PATHS:
        if isinstance(named := values.get(key, NodeFile.model_fields[key].default), str | Path):
            values[key] = folder / named
    name = values.get("experiment")
    if isinstance(name, str) and (name.endswith(".toml") or os.sep in name):
        values["experiment"] = str(folder / name)
    return values
