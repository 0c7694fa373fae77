"""Edge lists: the text files in which graphs are passed around."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from node.errors import ConfigError
from node.topology.graph import Graph


def read(path: str, nodes: int) -> Graph:
    """Read a connected undirected graph: a line holds two node numbers, counted from 0; ``#`` starts a comment.

    A first line with a single number is the number of nodes. An edge may be given in both directions.

    Raises:
        ConfigError: the file cannot be read, or holds no such graph; names the file and the line.
    """
    lines = _lines(path)
    if lines and len(lines[0][1]) == 1:
        where, words = lines.pop(0)
        if _number(where, words[0]) != nodes:
            raise ConfigError(
                f"{where}: the graph has {words[0]} nodes, the experiment {nodes}; set nodes = {words[0]}"
            )
    edges = [_edge(where, words, nodes) for where, words in lines]
    graph = Graph(nodes, np.array(edges, dtype=np.int64).reshape(-1, 2).T)
    node = graph.unreached()
    if node is not None:
        raise ConfigError(
            f"topology.path: {path} is not connected: no path leads from node 0 to node {node}; add edges"
        )
    return graph


def _lines(path: str) -> list[tuple[str, list[str]]]:
    """The place (file and line number) and the words of each line that has any."""
    if not path:
        raise ConfigError('topology.path: kind = "file" needs an edge list, two node numbers a line; set its path')
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"topology.path: cannot read {path}: {error.strerror}; give an edge list") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"topology.path: {path} is not text; give an edge list, two node numbers a line") from error
    lines = enumerate(text.splitlines(), 1)
    split = [(f"topology.path: {path}:{number}", line.partition("#")[0].split()) for number, line in lines]
    return [(where, words) for where, words in split if words]


def _edge(where: str, words: list[str], nodes: int) -> tuple[int, int]:
    if len(words) != 2:
        raise ConfigError(f"{where}: {' '.join(words)!r} is no edge; write two node numbers")
    low, high = sorted(_number(where, word) for word in words)
    if low < 0 or high >= nodes:
        unknown = low if low < 0 else high
        raise ConfigError(f"{where}: there is no node {unknown}; {nodes} nodes have the numbers 0 to {nodes - 1}")
    if low == high:
        raise ConfigError(f"{where}: node {low} is its own neighbour; remove the line")
    return low, high


def _number(where: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"{where}: {word!r} is no node number") from None
