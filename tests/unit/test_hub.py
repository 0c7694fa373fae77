"""Data sets through the real ``datasets`` package; skipped where it is not installed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from node.config import DataSection
from node.errors import ConfigError
from node.learn.sources import read

datasets = pytest.importorskip("datasets", reason="needs starling-node[data]")
pytestmark = pytest.mark.filterwarnings("default")  # of a package that is not ours

LABELS = (np.arange(60) % 3).tolist()


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def columns():
    values = np.random.default_rng(5).normal(size=(2, 60))
    return values, datasets.Dataset.from_dict({"a": values[0].tolist(), "b": values[1].tolist(), "label": LABELS})


def test_a_saved_data_set_loads_column_by_column(tmp_path):
    values, table = columns()
    table.save_to_disk(str(tmp_path / "saved"))
    train, test = read(DataSection(name=str(tmp_path / "saved")), 0)
    assert test is None
    np.testing.assert_allclose(train.features, values.T)


def test_a_saved_data_set_keeps_its_own_test_split(tmp_path):
    _, table = columns()
    splits = datasets.DatasetDict({"train": table, "test": table.select(range(12))})
    splits.save_to_disk(str(tmp_path / "saved"))
    train, test = read(DataSection(name=str(tmp_path / "saved")), 0)
    assert (len(train.features), len(test.features)) == (60, 12)


def test_a_saved_data_set_of_images_is_pixels_between_0_and_1(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, size=(60, 8, 8), dtype=np.uint8)
    images = datasets.Dataset.from_dict({"image": [Image.fromarray(each) for each in pixels], "label": LABELS})
    images.save_to_disk(str(tmp_path / "saved"))
    train, _ = read(DataSection(name=str(tmp_path / "saved")), 0)
    np.testing.assert_allclose(train.features[:, 0], pixels / 255, atol=1e-6)


def test_a_saved_data_set_can_be_divided_by_owner(tmp_path):
    _, table = columns()
    table.add_column("owner", [f"hospital {i % 4}" for i in range(60)]).save_to_disk(str(tmp_path / "saved"))
    train, _ = read(DataSection(name=str(tmp_path / "saved"), column="owner", partition="natural"), 0)
    assert len(np.unique(train.owners)) == 4
    assert train.features.shape == (60, 2)


def test_a_folder_of_files_loads(tmp_path):
    values, table = columns()
    (tmp_path / "files").mkdir()
    table.to_csv(str(tmp_path / "files" / "train.csv"))
    train, _ = read(DataSection(name=str(tmp_path / "files")), 0)
    np.testing.assert_allclose(train.features, values.T)


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "/nowhere/at/all"])
def test_what_does_not_load_is_one_line(name):
    with pytest.raises(ConfigError) as refused:
        read(DataSection(name=name), 0)
    assert str(refused.value).startswith(f"data.name: '{name}' does not load as a Hugging Face data set: ")
    assert "\n" not in str(refused.value)
