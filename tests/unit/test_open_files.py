"""Many children need many open files: the limit is raised as far as needed, or it is said that it cannot be."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from node.errors import ConfigError
from node.live import children
from node.live.children import fork_all

NO_LIMIT = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit of open files, soft and hard, as it was set; the last one counts."""
    set_to = [(1024, 4096)]
    monkeypatch.setattr(children.resource, "getrlimit", lambda what: set_to[-1])
    monkeypatch.setattr(children.resource, "setrlimit", lambda what, limit: set_to.append(limit))
    return set_to


def forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: int, spares: int = 0) -> None:
    """As far as the first fork."""
    monkeypatch.setattr(children.os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError(11, "no more")))
    with pytest.raises(ConfigError, match="starts no more than 0 processes"):
        fork_all(nodes, lambda node, end: 0, tmp_path / "logs", range(spares))


def test_few_children_change_nothing(limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    forked(monkeypatch, tmp_path, 700)
    assert limits == [(1024, 4096)]


@pytest.mark.parametrize(("nodes", "spares"), [(1000, 0), (500, 500)])
def test_many_raise_the_soft_limit_as_far_as_needed(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: int, spares: int
):
    forked(monkeypatch, tmp_path, nodes, spares)
    assert limits[1:] == [(1256, 4096)]


@pytest.mark.parametrize("limit", [(1024, NO_LIMIT), (NO_LIMIT, NO_LIMIT)])
def test_no_limit_is_enough(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: tuple[int, int]
):
    limits[:] = [limit]
    forked(monkeypatch, tmp_path, 10)
    assert limits == [limit]


def test_more_than_this_machine_allows_is_said_before_any_fork(limits: list[tuple[int, int]], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^nodes: 4000 processes need 4256 open files.* allows 4096; .*ulimit -Hn"):
        fork_all(4000, lambda node, end: 0, tmp_path / "logs")
    assert limits == [(1024, 4096)]
    assert not (tmp_path / "logs").exists()
