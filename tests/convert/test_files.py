"""Checkpoint files. Those in tests/data/checkpoints were written by PyTorch and safetensors."""

import io
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffjax import convert

FILES = pathlib.Path(__file__).parents[1] / "data" / "checkpoints"


def expected(scale):
    """What the script that wrote the files put into them."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) * scale
    return {
        "conv.weight": base,
        "view": base.transpose(2, 0, 1)[1:],
        "half": base[0].astype(np.float16),
        "bfloat16": base[1].astype(ml_dtypes.bfloat16),
        "double": base[0, 0].astype(np.float64),
        "count": np.array(7),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }


def assert_same(given, wanted):
    assert given.keys() == wanted.keys()
    for name, array in wanted.items():
        assert given[name].dtype == array.dtype
        np.testing.assert_array_equal(given[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["training.pt", "legacy.pth"])
def test_averages_of_a_training_checkpoint(name):
    """Beside an optimiser's state and arguments; since and before PyTorch 1.6; views, all types."""
    assert_same(convert.load(FILES / name), expected(0.5))


def test_averages_of_score_sde():
    """A list without names, from which what is not trained is missing."""
    wanted = {"sigmas": np.ones(4), "all_modules.0.W": np.ones(2)}
    wanted |= {"a.weight": np.full((2, 2), 2.0), "a.bias": np.full(2, 3.0)}
    assert_same(
        convert.load(FILES / "score_sde.pth"),
        {name: array.astype(np.float32) for name, array in wanted.items()},
    )


def test_safetensors_and_npz(tmp_path):
    wanted = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.half": np.arange(3, dtype=np.float16),
        "a.bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
    }
    assert_same(convert.load(FILES / "weights.safetensors"), wanted)
    del wanted["a.bfloat16"]
    np.savez(tmp_path / "weights.npz", **{f"module.{name}": a for name, a in wanted.items()})
    assert_same(convert.load(tmp_path / "weights.npz"), wanted)


class Program:
    """Pickled, this is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(contents, path):
    """A file as PyTorch writes it, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", contents)
    return path


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_does_not_run(zipped, protocol, tmp_path):
    trace = tmp_path / "trace"
    contents = pickle.dumps({"a": Program(pathlib.Path.touch, trace)}, protocol)
    path = tmp_path / "model.pt"
    archive(contents, path) if zipped else path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"model\.pt: it (asks for|is no PyTorch)"):
        convert.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("call", [(getattr, str, "join"), (eval, "1"), (np.load, "x")])
def test_functions_are_refused(call, tmp_path):
    path = archive(pickle.dumps(Program(*call)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"asks for .*, which is no tensor; nothing of it was run"):
        convert.load(path)


def test_whole_modules_are_refused():
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        convert.load(FILES / "module.pt")


class Rebuild(pickle.Pickler):
    """Writes tensors whose numbers lie outside of their storage."""

    def persistent_id(self, value):
        return ("storage", FLOATS, "0", "cpu", 1) if value == "the storage" else None


FLOATS = type("FloatStorage", (), {"__module__": "torch"})


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (5,), (1,)), (4, (1,), (1,)), (3, (2,), (-1,))]
)
def test_tensors_stay_inside_their_storage(offset, shape, strides, monkeypatch, tmp_path):
    def rebuild(*arguments):
        return arguments

    torch = type(pickle)("torch")
    torch.FloatStorage, utilities = FLOATS, type(pickle)("torch._utils")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utilities._rebuild_tensor_v2 = rebuild
    monkeypatch.setitem(__import__("sys").modules, "torch", torch)
    monkeypatch.setitem(__import__("sys").modules, "torch._utils", utilities)
    buffer = io.BytesIO()
    tensor = Program(rebuild, "the storage", offset, shape, strides, False, None)
    Rebuild(buffer, 2).dump({"a": tensor})
    path = archive(buffer.getvalue(), tmp_path / "model.pt")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", np.zeros(4, np.float32).tobytes())
    with pytest.raises(ValueError, match="outside of its storage"):
        convert.load(path)


@pytest.mark.parametrize("name", ["training.pt", "legacy.pth", "weights.safetensors"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.97])
def test_truncated_files(name, part, tmp_path):
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"(cut short|no PyTorch checkpoint)") as error:
        convert.load(path)
    assert "\n" not in str(error.value)


def test_changed_bytes_are_found(tmp_path):
    whole = bytearray((FILES / "training.pt").read_bytes())
    whole[whole.index(np.arange(2.5, 4.5, 0.5, np.float32).tobytes())] ^= 1
    (tmp_path / "training.pt").write_bytes(whole)
    with pytest.raises(ValueError, match="is damaged"):
        convert.load(tmp_path / "training.pt")


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("model.txt", b"", r"cannot read a file that ends in '\.txt'"),
        ("model.pt", b"not a checkpoint", "it is no PyTorch checkpoint"),
        ("model.npz", b"not a checkpoint", "damaged"),
        ("model.safetensors", b"\x05\x00\x00\x00\x00\x00\x00\x00hello", "damaged"),
    ],
)
def test_other_files(name, contents, message, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        convert.load(tmp_path / name)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint file"):
        convert.load(tmp_path / "model.pt")
    path = archive(pickle.dumps({"step": 3, "state_dict": {}}), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="it holds no named tensors"):
        convert.load(path)
