"""What the owner of a network has decided: the file ``network.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from node.config.section import Section
from node.errors import ConfigError
from node.trust.authority import Terms
from node.trust.certificate import id_of, id_text, peer_id

_DAY_S = 86_400


class NetworkFile(Section):
    """The file ``network.toml``."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """For people: letters, digits, '.', '_' and '-'."""
    id: str
    """32 characters: the hash of the key that founded it."""
    key: str
    """The Ed25519 public key that founded it, 64 hexadecimal digits."""
    nodes: int = Field(ge=1)
    """How many node numbers there are; as many as the experiment has nodes."""
    admission: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:%\[\]-]+:[0-9]{1,5}$", max_length=255)]
    """``host:port`` at which newcomers reach the admitting node."""
    open: bool = False
    """Whether anybody may join without an invitation, as a learner."""
    certificate_days: int = Field(30, ge=1, le=3650)
    """How long a membership certificate lasts; members renew it from its half on."""
    overlap_days: int = Field(1, ge=0, le=365)
    """How long the old of two keys still counts when a member's or the admission key changes."""
    reissue: bool = False
    """Whether the number of a node that was revoked, or whose certificate has ended, is given to another."""

    @field_validator("id")
    @classmethod
    def _is_id(cls, text: str) -> str:
        id_of(text)
        return text

    @field_validator("key")
    @classmethod
    def _is_key(cls, text: str, info: ValidationInfo) -> str:
        key = bytes.fromhex(text)
        if len(key) != 32 or id_text(peer_id(key)) != info.data.get("id"):
            raise ValueError("is not the key whose hash is the network's id; restore it")
        return text

    @property
    def network(self) -> bytes:
        """The network's id, 20 bytes."""
        return id_of(self.id)

    def terms(self) -> Terms:
        """The same for an authority."""
        return Terms(
            self.network,
            self.nodes,
            open=self.open,
            lifetime_s=self.certificate_days * _DAY_S,
            overlap_s=self.overlap_days * _DAY_S,
            reissue=self.reissue,
        )


def read_settings(path: Path, text: str) -> NetworkFile:
    """The settings in the text of a file. ConfigError: one line that names the file, the key, and what is wrong."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return checked(values, str(path))


def checked(values: dict[str, object], source: str) -> NetworkFile:
    """The settings of these values, which came from ``source``. ConfigError as :func:`read_settings`."""
    try:
        return NetworkFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{source}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
