"""Images in directories, zip archives and npz files."""

import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffjax import data


def picture(value, size=(6, 6), mode="RGB"):
    """A picture whose pixels say which one it is."""
    return Image.new(mode, size, value if mode == "L" else (value, value // 2, 255 - value))


def write(root, files):
    """Writes pictures {name: value or Image} below a directory."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (content if isinstance(content, Image.Image) else picture(content)).save(path)
    return root


def archive(root, prefix=""):
    """Packs a directory into a zip archive beside it."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(root.rglob("*"), reverse=True):  # directories are members too
            file.write(member, prefix + member.relative_to(root).as_posix())
    return path


def reds(source):
    """(first red value, label) of each example."""
    return [
        (int(e["image"][0, 0, 0]), e["label"]) for e in map(source.__getitem__, range(len(source)))
    ]


TREE = {"cat/2.png": 20, "cat/10.png": 10, "dog/deep/1.png": 30, "ant/1.png": 40}
LABELLED = [(40, 0), (10, 1), (20, 1), (30, 2)]  # sorted by name, classes too


@pytest.mark.parametrize("packed", [None, "", "animals/"])
def test_directories_are_classes(tmp_path, packed):
    path = write(tmp_path / "set", TREE)
    (path / "notes.txt").write_text("not an image")
    (path / ".hidden").mkdir()
    picture(99).save(path / ".hidden" / "1.png")
    if packed is not None:
        path = archive(path, packed)
    source = data.create(f"folder:{path}")
    assert source.num_classes == 3 and source.shape == (6, 6, 3)
    assert source.name == f"folder:{path}"
    assert reds(source) == LABELLED
    np.testing.assert_array_equal(source[0]["image"], np.asarray(picture(40)))
    assert reds(data.create(f"folder:{path}", split="all")) == LABELLED


@pytest.mark.parametrize("directory", ["", "only/"])
def test_no_classes(tmp_path, directory):
    write(tmp_path, {f"{directory}{i}.png": i for i in range(3)})
    source = data.create(f"folder:{tmp_path}")
    assert source.num_classes == 0
    assert reds(source) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("packed", [False, True])
def test_splits(tmp_path, packed):
    files = {"train/cat/1.png": 1, "train/dog/1.png": 2, "test/dog/1.png": 3, "val/cat/1.png": 4}
    path = write(tmp_path / "set", files | {"cover.png": 5})
    if packed:
        path = archive(path)
    sources = {s: data.create(f"folder:{path}", split=s) for s in ("train", "test", "all")}
    assert reds(sources["train"]) == [(1, 0), (2, 1)]
    assert reds(sources["test"]) == [(3, 1)]  # dog is 1 although there is no cat
    assert sorted(reds(sources["all"])) == [(1, 0), (2, 1), (3, 1)]
    assert {source.num_classes for source in sources.values()} == {2}


@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_dataset_json(tmp_path, packed):
    files = {"00000/a.png": 1, "00000/b.png": 2, "00001/c.png": 3}
    path = write(tmp_path / "set", files)
    labels = [["00000/a.png", 3], ["00001/c.png", 0], ["00000/b.png", 1]]
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    if packed:
        path = archive(path)
    source = data.create(f"folder:{path}")
    assert source.num_classes == 4
    assert reds(source) == [(1, 3), (2, 1), (3, 0)]


def test_dataset_json_may_say_there_are_no_labels(tmp_path):
    write(tmp_path, {"00000/a.png": 1, "00001/b.png": 2})
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    source = data.create(f"folder:{tmp_path}")
    assert source.num_classes == 0 and reds(source) == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [["a.png", 0]]}', "no label for b.png"),
        ('{"labels": [["a.png", 0], ["b.png", [0, 1]]]}', r"b.png must be a class number, got \[0"),
        ('{"labels": [["a.png", 0], ["b.png", -1]]}', "b.png must be a class number, got -1"),
        ("{}", "dataset.json is not of the form"),
        ("[1]", "dataset.json is not of the form"),
        ("nonsense", "dataset.json is not of the form"),
    ],
)
def test_bad_dataset_json(tmp_path, content, message):
    write(tmp_path, {"a.png": 1, "b.png": 2})
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        data.create(f"folder:{tmp_path}")


def test_channels_follow_the_first_image(tmp_path):
    write(tmp_path, {"a.png": picture(7, mode="L"), "b.png": picture(100)})
    grey = data.create(f"folder:{tmp_path}")
    assert grey.shape == (6, 6, 1)
    assert grey[0]["image"][0, 0] == 7
    assert grey[1]["image"][0, 0] == round(0.299 * 100 + 0.587 * 50 + 0.114 * 155)  # Rec. 601
    colour = data.create(f"folder:{tmp_path}", channels=3)
    assert colour.shape == (6, 6, 3)
    np.testing.assert_array_equal(colour[0]["image"][0, 0], [7, 7, 7])


def test_palette_and_transparency_become_rgb(tmp_path):
    clear = picture(50).convert("RGBA")
    clear.putalpha(0)
    write(
        tmp_path,
        {"a.png": picture(50).convert("P", palette=Image.Palette.ADAPTIVE), "b.png": clear},
    )
    source = data.create(f"folder:{tmp_path}")
    np.testing.assert_array_equal(source[0]["image"], source[1]["image"])
    np.testing.assert_array_equal(source[1]["image"][0, 0], [50, 25, 205])


def test_size_resizes_every_image(tmp_path):
    write(tmp_path, {"a.png": picture(1, (40, 20)), "b.jpg": picture(2, (5, 9))})
    source = data.create(f"folder:{tmp_path}", size=8)
    assert source.shape == source[1]["image"].shape == (8, 8, 3)
    np.testing.assert_array_equal(source[0]["image"][3, 3], [1, 0, 254])


def test_other_shape_is_refused(tmp_path):
    write(tmp_path, {"a.png": 1, "b.png": picture(2, (6, 7))})
    source = data.create(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"b.png has shape \(7, 6, 3\).*\(6, 6, 3\); pass size="):
        source[1]


@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("packed", [False, True])
def test_broken_image_is_named(tmp_path, content, packed):
    path = write(tmp_path / "set", {"x/a.png": 1, "y/b.png": picture(2, (64, 64))})
    if content is None:
        content = (path / "y/b.png").read_bytes()[:-40]  # an interrupted copy
    (path / "y/b.png").write_bytes(content)
    if packed:
        path = archive(path)
    source = data.create(f"folder:{path}")
    message = re.escape(f"cannot read the image {path}/y/b.png")
    with pytest.raises(ValueError, match=message):
        source[1]
    with pytest.raises(ValueError, match=message):  # the loop's threads pass it on
        next(data.batches(source, batch_size=2, seed=0))


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has more than 8 bits a channel"):
        data.create(f"folder:{tmp_path}")


def test_stray_image_is_named(tmp_path):
    write(tmp_path, {"a/1.png": 1, "b/1.png": 2, "logo.png": 3})
    with pytest.raises(ValueError, match=r"logo\.png lies beside class directories"):
        data.create(f"folder:{tmp_path}")


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="none: no such directory or zip archive"):
        data.create(f"folder:{tmp_path}/none")
    with pytest.raises(ValueError, match=r"no images; looked for \*.png, "):
        data.create(f"folder:{tmp_path}")
    write(tmp_path, {"a.png": 1})
    with pytest.raises(ValueError, match="has no split 'test'"):
        data.create(f"folder:{tmp_path}", split="test")
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"):
        data.create(f"folder:{tmp_path}", channels=4)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.create(f"folder:{tmp_path}", size=0)


@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1")])
def test_arrays(tmp_path, keys):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 1), np.uint8)
    labels = np.array([0, 2, 1, 2, 0])
    np.savez(tmp_path / "x.npz", **dict(zip(keys, (images, labels), strict=True)))
    source = data.create(f"arrays:{tmp_path}/x.npz")
    assert source.num_classes == 3 and source.shape == (4, 3, 1)
    np.testing.assert_array_equal(source.images, images)
    assert [source[i]["label"] for i in range(5)] == labels.tolist()


def test_arrays_without_labels(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", np.zeros((2, 4, 4, 3), np.uint8))
    source = data.create(f"arrays:{tmp_path}/x.npz", split="all")
    assert source.num_classes == 0 and len(source) == 2


def test_bad_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 4, 4, 3)))
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name, message in {
        "x.npz": "no array called 'images' or 'arr_0'",
        "float.npz": "float.npz: images must be uint8",
        "none.npz": "none.npz: not a readable .npz file",
        "x.npy": "x.npy: not a readable .npz file",
        "text.npz": "text.npz: not a readable .npz file",
    }.items():
        with pytest.raises(ValueError, match=message):
            data.create(f"arrays:{tmp_path}/{name}")
    with pytest.raises(ValueError, match="has no split 'test'"):
        data.create(f"arrays:{tmp_path}/x.npz", split="test")
