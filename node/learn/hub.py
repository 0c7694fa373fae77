"""Tables of Hugging Face data sets, by id or from a local folder, through the optional ``datasets`` package."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from node.errors import ConfigError


def fetch(name: str) -> tuple[pa.Table, pa.Table | None]:
    """The rows to learn from, and the data set's own test rows where it has a split named ``test``.

    ``name`` is an id of the hub, a folder of files that ``datasets`` can load, or one that ``save_to_disk`` wrote.

    Raises ConfigError where the package, the data set, or a split to train on is missing.
    """
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise ConfigError(
            f"data.name: {name!r} is no bundled name (starling list datasets) and no .npz, .csv or .parquet file; "
            'to read it from Hugging Face: pip install "starling-node[data]"'
        ) from None
    saved = any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        found = load_from_disk(name) if saved else load_dataset(name)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"data.name: {name!r} does not load as a Hugging Face data set: {reason}") from None
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ConfigError(f"data.name: {name!r} has no split 'train'; it has: {', '.join(splits)}")
    rows = {split: splits[split].with_format("arrow")[:] for split in ("train", "test") if split in splits}
    return rows["train"], rows.get("test")
