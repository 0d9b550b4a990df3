"""Sources by name, the built-in data, and labels."""

import numpy as np
import pytest
from absl import logging
from sklearn import datasets

from diffjax import data
from diffjax.data import builtin


class Few:
    """A user's own source: the contract and nothing more."""

    name, shape, num_classes, levels = "few", (2, 3, 1), 3, 256

    def __len__(self):
        return 5

    def __getitem__(self, index):
        index = range(5)[index]
        return {"image": np.full(self.shape, 10 * index, np.uint8), "label": index % 3}


@pytest.mark.parametrize(
    ("name", "split", "length", "shape", "num_classes"),
    [
        ("digits", "train", 898, (8, 8, 1), 10),
        ("digits", "test", 899, (8, 8, 1), 10),
        ("digits", "all", 1797, (8, 8, 1), 10),
        ("patches", "train", 50_000, (32, 32, 3), 2),
        ("patches", "test", 5_000, (32, 32, 3), 2),
    ],
)
def test_contract(name, split, length, shape, num_classes):
    source = data.create(name, split=split)
    assert len(source) == length
    assert source.shape == shape and source.num_classes == num_classes and source.name == name
    for index in (0, 1, length - 1):
        example = source[index]
        assert set(example) == {"image", "label"}
        assert example["image"].dtype == np.uint8 and example["image"].shape == shape
        assert type(example["label"]) is int and 0 <= example["label"] < num_classes
    np.testing.assert_array_equal(source[-1]["image"], source[length - 1]["image"])
    with pytest.raises(IndexError):
        source[length]


def test_digits_are_scikit_learns():
    source = data.create("digits", split="all")
    original = datasets.load_digits()
    levels = np.unique(source.images)
    assert source.levels == len(levels) == 17 and (levels[0], levels[-1]) == (0, 255)
    back = np.round(source.images[..., 0] * (16 / 255))

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels])))

    assert rows(back, source.labels) == rows(original.images, original.target)


def test_digits_splits_are_the_halves_of_all():
    train, test, both = (data.create("digits", split=s) for s in ("train", "test", "all"))
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), both.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), both.labels)
    # A split in the order of the file would not be: its writers come one after another.
    assert np.bincount(train.labels).min() > 75 and np.bincount(test.labels).min() > 75


def test_patches_are_crops_of_their_photograph():
    source = data.create("patches", split="all", length=20, seed=3)
    photographs = datasets.load_sample_images().images
    for i in range(20):
        example = source[i]
        photograph = photographs[example["label"]]
        assert example["label"] == i % 2
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (32, 32), axis=(0, 1))
        corner = example["image"][0, 0]
        found = np.argwhere((windows[..., 0, 0] == corner).all(-1))
        patch = example["image"].transpose(2, 0, 1)
        assert any((windows[row, column] == patch).all() for row, column in found)


def test_patches_splits_share_no_pixel():
    photographs = np.stack(datasets.load_sample_images().images)

    def columns(split, start, stop):
        """The columns that crops of a split show, after checking that it crops just these."""
        region = data.create("patches", split=split, length=1)._pictures
        np.testing.assert_array_equal(region, photographs[:, :, start:stop])
        # The same crops of a picture that has its column numbers for colours.
        numbers = np.broadcast_to(np.arange(start, stop)[:, None], (*region.shape[:3], 1))
        crops = builtin.PatchSource(numbers, size=32, length=4000, seed=0)
        return set(np.unique([crops[i]["image"] for i in range(4000)]).tolist())

    assert columns("train", 0, 512) == set(range(512))
    assert columns("test", 512, 640) == set(range(512, 640))


def test_patches_depend_on_index_and_seed_only():
    long, short = (data.create("patches", length=n, seed=1) for n in (3000, 40))
    other = data.create("patches", length=40, seed=2)
    same = [np.array_equal(short[i]["image"], long[i]["image"]) for i in range(40)]
    assert all(same)
    assert not any(np.array_equal(short[i]["image"], other[i]["image"]) for i in range(40))


def test_patch_size():
    assert data.create("patches", size=128, split="test")[0]["image"].shape == (128, 128, 3)


def test_in_memory():
    few = Few()
    stored = data.in_memory(few)
    assert (stored.name, stored.num_classes, stored.shape) == ("few", 3, (2, 3, 1))
    np.testing.assert_array_equal(stored.images[:, 0, 0, 0], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(stored.labels, [0, 1, 2, 0, 1])
    assert data.in_memory(stored) is stored


def test_array_source_without_labels():
    source = data.ArraySource(np.zeros((3, 2, 2, 1), np.uint8))
    assert source.num_classes == 0 and source[2]["label"] == 0
    assert data.in_memory(source).labels is None


IMAGES = np.zeros((3, 2, 2, 1), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"images": IMAGES / 255},
            r"images must be uint8 \(n, height, width, channels\), got float",
        ),
        ({"images": IMAGES[0]}, r"got uint8 \(2, 2, 1\)"),
        (
            {"images": IMAGES, "labels": np.zeros(2, int)},
            r"labels must be integers of shape \(3,\)",
        ),
        ({"images": IMAGES, "labels": np.zeros(3)}, "got float64"),
        ({"images": IMAGES, "labels": np.array([0, -1, 0])}, r"in 0..0, got -1..0"),
        ({"images": IMAGES, "labels": np.array([0, 5, 0]), "num_classes": 5}, r"in 0..4, got 0..5"),
        ({"images": IMAGES, "num_classes": 5}, "num_classes=5 but no labels"),
    ],
)
def test_array_source_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.ArraySource(**arguments)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit", "digits"),
        ("patch", "patches"),
        ("tdfs:cifar10", "tfds:NAME"),
        ("Folder:/tmp", "folder:PATH"),
        ("array:x.npz", "arrays:PATH.npz"),
        ("folder", "folder:PATH"),
        ("digits:8", "digits"),
    ],
)
def test_unknown_source(name, nearest):
    with pytest.raises(ValueError, match=f"{name!r}; did you mean '{nearest}'") as caught:
        data.create(name)
    for form in ("digits", "patches", "folder:PATH", "arrays:PATH.npz", "tfds:NAME"):
        assert form in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digits",
            {"split": "validation"},
            "unknown split 'validation' of 'digits'; splits: train",
        ),
        ("digits", {"size": 16}, "'digits' has no option 'size'; its options: none"),
        ("patches", {"sise": 16}, "no option 'sise'; its options: size, length, seed"),
        ("patches", {"size": 129}, r"size must be in 1..128, got 129"),
        ("patches", {"length": 0}, "length must be at least 1, got 0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.create(name, **options)


def test_ignored_labels_are_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    unlabelled = data.ArraySource(IMAGES)
    data.check_labels(Few(), conditional=True)
    data.check_labels(unlabelled, conditional=False)
    assert not warnings
    data.check_labels(Few(), conditional=False)
    assert warnings == ["LABELS IGNORED: few has 3 classes, but the system is unconditional."]
    with pytest.raises(ValueError, match="conditional but the data 'arrays' have no labels"):
        data.check_labels(unlabelled, conditional=True)
