"""Samples from columns: .csv and .parquet files, and tables with a column of encoded images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from node.config import DataSection
from node.errors import ConfigError
from node.learn.samples import Samples, absent, names, unlabelled


def read_table(path: Path) -> pa.Table:
    """The rows of a .csv or .parquet file.

    Raises ConfigError for a file that does not parse.
    """
    try:
        if path.suffix == ".csv":
            # A missing label must stay missing, not become a class named "".
            blank_is_null = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
            return pyarrow.csv.read_csv(path, convert_options=blank_is_null)
        return pyarrow.parquet.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not a readable {path.suffix} file: {reason}") from None


def from_table(table: pa.Table, section: DataSection, source: str) -> Samples:
    """The samples that a table's rows describe.

    Features are the column of images (float32 [C, H, W] in [0, 1]) where there is one, whatever else there is; else
    every column but the label and the owner, all of which must be numbers.

    Raises ConfigError for columns that are missing, doubled, incomplete or not numeric.
    """
    if table.num_rows == 0:
        raise ConfigError(f"{source}: holds no samples")
    there = table.column_names
    if len(set(there)) < len(there):
        doubled = max(there, key=there.count)
        raise ConfigError(f"{source}: column {doubled!r} is there twice; every column needs its own name")
    for key, name in (("data.label", section.label), ("data.column", section.column)):
        if name and name not in there:
            raise absent(source, name, key, there)
    rest = [name for name in there if name not in (section.label, section.column)]
    if images := [name for name in rest if _holds_images(table.schema.field(name).type)]:
        if len(images) > 1:
            raise ConfigError(f"{source}: columns {images[0]!r} and {images[1]!r} both hold images; keep one of them")
        features, columns = _images(table, images[0], source), ()
    else:
        features, columns = _numbers(table, rest, source), tuple(rest)
    return Samples(
        source,
        features,
        names(source, section.label, _values(table, section.label, source))
        if section.label
        else unlabelled(len(table)),
        names(source, section.column, _values(table, section.column, source)) if section.column else None,
        columns,
    )


def _values(table: pa.Table, name: str, source: str) -> np.ndarray:
    """A complete column as an array; text has a text dtype, never objects."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise ConfigError(f"{source}: column {name!r} lacks {column.null_count} of {len(column)} values; fill or drop")
    values = np.asarray(column.to_numpy())
    return values.astype(str) if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else values


def _numbers(table: pa.Table, columns: list[str], source: str) -> np.ndarray:
    """Numeric columns side by side, float64 [rows, columns]."""
    if not columns:
        raise ConfigError(f"{source}: no column is left for the features; it has: {', '.join(table.column_names)}")
    for name in columns:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ConfigError(f"{source}: column {name!r} holds {kind}; features must be numbers: encode or drop it")
    return np.stack([_values(table, name, source).astype(np.float64) for name in columns], axis=1)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a column holds what Hugging Face's Image feature stores: encoded bytes, or the path of a file."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _images(table: pa.Table, column: str, source: str) -> np.ndarray:
    """Decoded images, float32 [rows, 1 or 3, height, width] in [0, 1]; grey only where all of them are."""
    pictures = [_opened(cell, f"{source}: column {column!r}, row {row}") for row, cell in enumerate(table[column])]
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sizes[0], sizes[-1]
        found = f"from {width}x{height} to {other_width}x{other_height}"
        raise ConfigError(f"{source}: column {column!r} holds images of {len(sizes)} sizes, {found}; make them equal")
    grey = all(picture.mode in ("1", "L") for picture in pictures)
    pixels = [np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) for picture in pictures]
    stacked = np.stack(pixels) / np.float32(255)
    return stacked[:, None] if grey else stacked.transpose(0, 3, 1, 2)


def _opened(cell: Any, where: str) -> Image.Image:
    content = cell.as_py() or {}
    try:
        if content.get("bytes") is not None:
            picture = Image.open(io.BytesIO(content["bytes"]))
        else:
            picture = Image.open(content.get("path") or "")
        picture.load()
    except OSError as error:
        raise ConfigError(f"{where}: not a readable image: {error}") from None
    if picture.mode[0] in "IF":
        raise ConfigError(f"{where}: pixels of mode {picture.mode}, not bytes; convert the images to 8 bits")
    return picture
