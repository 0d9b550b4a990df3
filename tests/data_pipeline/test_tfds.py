"""TensorFlow Datasets: a small data set is built with TensorFlow and read without."""

import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffjax import data

HERE = pathlib.Path(__file__).parent
BUILD = """
import sys
from shapes.shapes_dataset_builder import Builder
Builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


class Without:
    """An importer that does not know some modules."""

    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self._names:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


@pytest.fixture
def uninstall(monkeypatch):
    """A function that makes packages look as if they were not installed."""

    def hide(*names):
        for module in [m for m in sys.modules if m.partition(".")[0] in names]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Without(f, names) for f in sys.meta_path])

    return hide


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Builds the data set, in a process of its own because that loads TensorFlow."""
    path = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-c", BUILD, path], cwd=HERE, check=True)
    return str(path)


def test_reads_examples_without_tensorflow(data_dir, uninstall):
    uninstall("tensorflow")
    train = data.create("tfds:shapes", data_dir=data_dir)
    test = data.create("tfds:shapes", split="test", data_dir=data_dir)
    assert train.name == "tfds:shapes"
    assert train.shape == (8, 12, 3) and train.num_classes == 2
    assert (len(train), len(test)) == (7, 3)
    levels = set()
    for example in [*map(train.__getitem__, range(7)), *map(test.__getitem__, range(3))]:
        level = int(example["image"][0, 0, 0])
        assert (example["image"] == level).all() and example["image"].shape == (8, 12, 3)
        assert example["label"] == level // 20 % 2 and type(example["label"]) is int
        levels.add(level)
    assert levels == set(range(0, 200, 20))


def test_splits_of_tfds(data_dir):
    assert len(data.create("tfds:shapes", split="all", data_dir=data_dir)) == 10
    assert len(data.create("tfds:shapes", split="train[:3]", data_dir=data_dir)) == 3


def test_size_crops(data_dir):
    source = data.create("tfds:shapes", data_dir=data_dir, size=4)
    assert source.shape == source[6]["image"].shape == (4, 4, 3)


def test_without_label_key_is_unlabelled(data_dir):
    source = data.create("tfds:shapes", data_dir=data_dir, label_key="")
    assert source.num_classes == 0
    assert {source[i]["label"] for i in range(7)} == {0}


def test_feeds_the_pipeline(data_dir):
    source = data.create("tfds:shapes", data_dir=data_dir)
    batches = data.batches(source, batch_size=7, seed=0)
    for _ in range(3):
        batch = next(batches)
        level = batch["image"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch["label"], level // 20 % 2)
        assert len(set(level)) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "validation"),
        ({"image_key": "picture"}, "no 'picture'; its features: image, label, mean"),
        ({"image_key": "mean"}, r"not an image.*int64 \(\)"),
    ],
)
def test_bad_options(data_dir, options, message):
    with pytest.raises(ValueError, match=message):
        data.create("tfds:shapes", data_dir=data_dir, **options)


def test_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="tfds:no_such_thing: no such data set"):
        data.create("tfds:no_such_thing", data_dir=str(tmp_path))


def test_out_of_range(data_dir):
    source = data.create("tfds:shapes", data_dir=data_dir)
    np.testing.assert_array_equal(source[-1]["image"], source[6]["image"])
    with pytest.raises(IndexError):
        source[7]


def test_package_missing(uninstall):
    uninstall("tensorflow_datasets")
    with pytest.raises(ValueError, match=r"pip install diffjax\[tfds\]"):
        data.create("tfds:shapes")


def test_building_without_tensorflow(tmp_path, monkeypatch, uninstall):
    monkeypatch.syspath_prepend(HERE)
    importlib.import_module("shapes.shapes_dataset_builder")  # makes the data set known by name
    uninstall("tensorflow")
    with pytest.raises(ValueError, match="building it needs TensorFlow: pip install tensorflow"):
        data.create("tfds:shapes", data_dir=str(tmp_path))
