"""Attacks that ride on nodes, one kind a file: what ``kind`` in an ``[[attackers]]`` table may name."""
