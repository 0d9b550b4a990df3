"""Checkpoint files as named arrays: ``.pt`` and ``.pth``, ``.safetensors``, ``.npz``.

A PyTorch file is a pickle, which may hold any program. It is read here without PyTorch, by an
unpickler that knows how to put tensors together and nothing else: a file that asks for more is
refused, and what it asks for never runs. Only the tensors wanted are read, the optimiser's are not.
"""

import collections
import contextlib
import functools
import io
import json
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["load"]

MAGIC = 0x1950A86A20F9469CFC6C  # how a PyTorch file from before version 1.6 begins
STORAGES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}
SAFETENSORS = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "I8": np.int8,
    "U8": np.uint8,
}
# Where training scripts keep the parameters, the averaged ones first.
AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema")
PLAIN = ("state_dict", "model", "model_state_dict", "module", "network", "params", "net")
PREFIXES = ("module.", "model.", "_orig_mod.")
FROZEN = ("sigmas", ".W")  # of Score-SDE's networks; not among its averages


class Tensor(NamedTuple):
    """A tensor of a file, not read yet."""

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]


class _Unreadable(Exception):
    """What is wrong with a file, in words."""


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint, averaged ones where there are any.

    Found inside the usual dicts and lists (``{'model': ..., 'ema': ...}``, DDIM's list, Score-SDE's
    ``shadow_params``); ``module.`` and ``model.`` before all names are dropped.

    Args:
        path: A ``.pt``, ``.pth``, ``.ckpt`` or ``.bin``, a ``.safetensors`` or an ``.npz``.

    Returns:
        Name -> array.

    Raises:
        ValueError: The file is damaged, of another kind, has something other than data in it, or no
            named tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint file {path}")
    try:
        with path.open("rb") as file:
            found = _parameters(_contents(file, path.suffix))
            if not found:
                raise _Unreadable("it holds no named tensors")
            arrays = {name: tensor.read() for name, tensor in found.items()}
    except _Unreadable as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
    except Exception as error:  # each kind of damage fails in a way of its own
        raise ValueError(
            f"checkpoint {path} is damaged or cut short ({type(error).__name__}: {error})"
        ) from error
    return _without_prefixes(arrays)


def _contents(file: BinaryIO, suffix: str) -> Any:
    """What is in the file, by its kind; tensors are not read yet."""
    match suffix:
        case ".npz":
            archive = np.load(file, allow_pickle=False)
            return {
                name: Tensor(lambda name=name: archive[name], archive[name].shape)
                for name in archive.files
            }
        case ".safetensors":
            return _safetensors(file)
        case ".pt" | ".pth" | ".ckpt" | ".bin":
            return _zipped(file) if zipfile.is_zipfile(file) else _legacy(file)
    raise _Unreadable(f"cannot read a file that ends in {suffix!r}: use .pt, .safetensors or .npz")


def _safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """A length, a table in JSON, and the arrays one after another."""
    size = int.from_bytes(file.read(8), "little")
    table = json.loads(file.read(size))

    def tensor(entry: dict[str, Any]) -> Tensor:
        start, stop = entry["data_offsets"]
        read = functools.partial(_bytes, file, 8 + size + start, stop - start)
        return _tensor(read, SAFETENSORS[entry["dtype"]], entry["shape"])

    return {name: tensor(entry) for name, entry in table.items() if name != "__metadata__"}


def _zipped(file: BinaryIO) -> Any:
    """PyTorch's form since 1.6: an archive of a pickle and one file a storage."""
    archive = zipfile.ZipFile(file)
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise _Unreadable("this archive is no PyTorch checkpoint: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise _Unreadable("it was written on a big-endian machine")

    def storage(key: str) -> Callable[[], bytes]:
        return lambda: archive.read(f"{root}data/{key}")

    return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _legacy(file: BinaryIO) -> Any:
    """PyTorch's form before 1.6: pickles one after another, then the storages."""
    file.seek(0)
    if file.read(2) == b"PK":
        raise _Unreadable("it is cut short: the end of the archive is missing")
    file.seek(0)
    places: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}

    def storage(key: str) -> Callable[[], bytes]:
        return lambda: _bytes(file, *places[key])

    def unpickled() -> Any:
        return _Unpickler(file, storage, sizes).load()

    begins = None
    with contextlib.suppress(Exception):  # a refusal stays a refusal, but of what?
        begins = unpickled()
    if begins != MAGIC:
        raise _Unreadable("it is no PyTorch checkpoint")
    _version, _machine, contents, keys = (unpickled() for _ in range(4))
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        places[key] = file.tell(), count * sizes[key]
        end = file.seek(count * sizes[key], os.SEEK_CUR)
        if end > file.seek(0, os.SEEK_END):
            raise _Unreadable("it is cut short: the last tensors are missing")
        file.seek(end)
    return contents


def _bytes(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


class _Inert:
    """Stands for an object of the file that holds settings only; takes them and does nothing."""

    def __init__(self, *arguments):
        del arguments


class _Unpickler(pickle.Unpickler):
    """Makes containers, numbers, strings and tensors; refuses everything else."""

    def __init__(self, file, storage, sizes: dict[str, int] | None = None):
        super().__init__(file, encoding="utf-8")
        self._storage, self._sizes = storage, {} if sizes is None else sizes

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): lambda *_: {},
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            ("argparse", "Namespace"): _Inert,
        }
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) not in known:
            raise _Unreadable(
                f"it asks for {module}.{name}, which is no tensor; nothing of it was run"
            )
        return known[module, name]

    def persistent_load(self, description: tuple) -> "tuple[Callable[[], bytes], np.dtype]":
        kind, dtype, key, *_ = description
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise _Unreadable(f"it holds a {kind!r}, which is no tensor")
        self._sizes[key] = dtype.itemsize
        return self._storage(key), dtype


def _rebuilt(storage, offset: int, shape: tuple, strides: tuple, *rest) -> Tensor:
    """PyTorch's ``_rebuild_tensor_v2``."""
    read, dtype = storage
    return _tensor(read, dtype, shape, offset, strides)


def _tensor(read: Callable[[], bytes], dtype, shape, offset: int = 0, strides=None) -> Tensor:
    """A view of a storage, read when wanted and then within its bounds."""
    dtype, shape = np.dtype(dtype), tuple(shape)

    def array() -> np.ndarray:
        flat = np.frombuffer(read(), dtype)
        steps = strides
        if steps is None:
            steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        last = offset + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        if min((*shape, *steps, offset, 0)) < 0 or (math.prod(shape) and last >= flat.size):
            raise _Unreadable("it is damaged or cut short: a tensor lies outside of its storage")
        byte_steps = [step * dtype.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_steps).copy()

    return Tensor(array, shape)


def _parameters(contents: Any) -> dict[str, Tensor]:
    """The named tensors somewhere in the contents, averaged ones first; none is an empty dict."""
    if isinstance(contents, list | tuple):  # DDIM: model, optimiser, epoch, step, averages
        dicts = [found for found in map(_parameters, contents) if found]
        if not dicts:
            return {}
        return dicts[-1] if dicts[-1].keys() == dicts[0].keys() else dicts[0]
    if not isinstance(contents, Mapping):
        return {}
    if contents and all(isinstance(entry, Tensor) for entry in contents.values()):
        return dict(contents)
    for key in AVERAGED:
        averages = contents.get(key)
        if isinstance(averages, Mapping) and "shadow_params" in averages:
            return _shadow(_parameters(contents.get("model")), averages["shadow_params"])
        if found := _parameters(averages):
            return found
    for key in PLAIN:
        if found := _parameters(contents.get(key)):
            return found
    return {}


def _shadow(named: dict[str, Tensor], averages: list[Tensor]) -> dict[str, Tensor]:
    """Score-SDE's averages: a list in the order of the model's trained parameters."""
    trained = [name for name in named if not name.endswith(FROZEN)]
    shapes = [named[name].shape for name in trained]
    if shapes != [average.shape for average in averages]:
        raise _Unreadable("its averages (shadow_params) do not fit its model's parameters")
    return named | dict(zip(trained, averages, strict=True))


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops what wrappers put before every name."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            return _without_prefixes(
                {name.removeprefix(prefix): array for name, array in arrays.items()}
            )
    return arrays
