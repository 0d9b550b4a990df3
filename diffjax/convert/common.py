"""What all families share: from named PyTorch tensors to a tree of Flax variables, and back."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

__all__ = [
    "Published",
    "Source",
    "at_block",
    "check",
    "check_arguments",
    "constructed",
    "from_tensors",
    "sources",
    "to_tensors",
]


class Published(NamedTuple):
    """A published network: our module of it, and what its authors call the parameters.

    Attributes:
        module: The network.
        input_shape: Shape of an input ``x``, a batch of one.
        official_name: Maps the path of one of our variables, for example
            ``'down_0_block_1/conv_0/kernel'``, to the official name. A ``{}`` in the name stands
            for the number of a layer: our variable stacks the tensors of all layers.
        constants: Tensors of the checkpoint that are no variables of ours, and their values.
        window: The window of an official convolution that is a dense layer of ours, by its name;
            ``()`` for what is dense there too. None lets any window pass, but there is then no way
            back to the official shapes of such layers.
        settings: Fields of a config that go with the weights, such as ``'schedule.name'``: how the
            authors trained them and drew from them.
        ignored: Whether a tensor of that name means nothing, and may be there or not.
        renamed: Gives a tensor's name in an older checkpoint the name that it has now.
        in_runs: The network as a run has it, on images in [-1, 1], where the authors' is on others;
            its variables are the same.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    official_name: Callable[[str], str]
    constants: Mapping[str, np.ndarray] = {}
    window: Callable[[str], tuple[int, ...]] | None = None
    settings: Mapping[str, Any] = {}
    ignored: Callable[[str], bool] = lambda name: False
    renamed: Callable[[str], str] = lambda name: name
    in_runs: nn.Module | None = None


class Source(NamedTuple):
    """Where one of our variables comes from.

    Attributes:
        names: Official names: one, or one a layer.
        shape: Shape that each tensor has in our layout.
        stacked: Whether the tensors are stacked along a new first axis.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool


def sources(published: Published) -> dict[tuple[str, ...], Source]:
    """Lists which official tensors make each of our variables; allocates none of them."""
    module = published.module
    x = jax.ShapeDtypeStruct(published.input_shape, jnp.float32)
    needs = inspect.signature(module.__call__).parameters
    inputs = [x, jax.ShapeDtypeStruct((), jnp.float32)] if "time" in needs else [x]
    if "labels" in needs and getattr(module, "num_classes", 0):
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    images = {"low_res": x} if "low_res" in needs else {}
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs, **images)

    def source(path, leaf):
        name = published.official_name("/".join(path[1:]))
        if "{}" in name:
            names = tuple(name.format(layer) for layer in range(leaf.shape[0]))
            return Source(names, leaf.shape[1:], stacked=True)
        return Source((name,), leaf.shape, stacked=False)

    return {path: source(path, leaf) for path, leaf in flatten_dict(variables).items()}


def from_tensors(published: Published, tensors: Mapping[str, Any]) -> dict:
    """Arranges official tensors as variables of our module.

    Every tensor must be used and every variable filled. The kernel of a convolution goes from
    ``(out, in, height, width)`` to ``(height, width, in, out)``, the weight of a linear layer is
    transposed, everything else stays. Where we have a dense layer instead of a convolution (1x1,
    or on patches), the leading axes of the kernel are merged.

    Args:
        published: Which network.
        tensors: Official name -> array (anything that ``numpy.asarray`` takes).

    Returns:
        Variables for ``published.module.apply``, float32.

    Raises:
        ValueError: If a tensor is missing, left over, of the wrong shape, not finite, or not the
            constant it should be.
    """
    table = check(published, tensors)
    tensors = {published.renamed(name): tensor for name, tensor in tensors.items()}
    for name, value in published.constants.items():
        if not np.allclose(np.asarray(tensors[name]), value, rtol=1e-5, atol=1e-5):
            raise ValueError(f"{name} differs from the network's constant; was it trained?")

    def variable(path, source):
        arrays = [_arrange(tensors[name], name, path[-1]) for name in source.names]
        parts = [array.reshape(source.shape) for array in arrays]
        return jnp.asarray(np.stack(parts) if source.stacked else parts[0])

    return unflatten_dict({path: variable(path, source) for path, source in table.items()})


def check(published: Published, tensors: Mapping[str, Any]) -> dict[tuple[str, ...], Source]:
    """Checks every name and shape, of arrays or anything else with a shape; reads no values.

    Returns:
        Which tensors make each of our variables, as :func:`sources`.

    Raises:
        ValueError: If a tensor is missing, left over or of the wrong shape.
    """
    table = sources(published)
    tensors = {published.renamed(name): tensor for name, tensor in tensors.items()}
    needed = {name for source in table.values() for name in source.names} | {*published.constants}
    present = {name for name in tensors if not published.ignored(name)}
    for problem, names in (("lacks", needed - present), ("has more than", present - needed)):
        if names:
            raise ValueError(
                f"the checkpoint {problem} the network's tensors: {_summary(names)}; "
                "check the constructor's arguments"
            )
    wanted = {name: value.shape for name, value in published.constants.items()}
    for path, source in table.items():
        for name in source.names:
            wanted[name] = _official_shape(published, name, path[-1], source.shape)
    for name, shape in wanted.items():
        given = tuple(tensors[name].shape)
        any_window = published.window is None and len(shape) == 2 and given[:1] == shape[:1]
        if given != shape and not (any_window and math.prod(given) == math.prod(shape)):
            raise ValueError(
                f"{name} has shape {given}, but the network's has {shape}; "
                "check the constructor's arguments"
            )
    return table


def to_tensors(published: Published, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_tensors`: official name -> float32 array in PyTorch layout.

    Raises:
        ValueError: If the variables are not those of the network.
    """
    table, given = sources(published), flatten_dict(dict(variables))
    for problem, paths in (
        ("lack", table.keys() - given),
        ("have more than", given.keys() - table),
    ):
        if paths:
            names = _summary({"/".join(path) for path in paths})
            raise ValueError(f"the variables {problem} the network's: {names}")
    tensors = {name: np.asarray(value) for name, value in published.constants.items()}
    for path, source in table.items():
        array = np.asarray(given[path], np.float32)
        for name, part in zip(source.names, array if source.stacked else [array], strict=True):
            if part.shape != source.shape:
                raise ValueError(f"{'/'.join(path)} has shape {part.shape}, not {source.shape}")
            if _outputs_first(name, path[-1], part.ndim):
                window = published.window(name) if published.window else ()
                part = part.reshape(*window, *part.shape[:-2], -1, part.shape[-1])
                part = np.ascontiguousarray(np.moveaxis(part, (-1, -2), (0, 1)))
            tensors[name] = part
    return tensors


def at_block(name: str) -> int:
    """The first number in a name: 3 of ``'blocks.3.attn.qkv.weight'``."""
    return int(re.search(r"\d+", name)[0])


def check_arguments(constructor: Callable[..., Any], case: Mapping[str, Any]) -> None:
    """Raises a ValueError if a constructor has no argument of a name in ``case``."""
    parameters = inspect.signature(constructor).parameters
    unknown = sorted(case.keys() - parameters.keys())
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(
            f"the official constructor has no argument {unknown[0]!r}; it has "
            f"{', '.join(parameters)}"
        )


def constructed(constructor: Callable[..., Any], case: Mapping[str, Any]) -> Any:
    """Calls a constructor; what does not fit its signature is a ValueError."""
    check_arguments(constructor, case)
    try:
        inspect.signature(constructor).bind(**case)
    except TypeError as error:
        raise ValueError(f"the official constructor: {error}") from None
    return constructor(**case)


def _outputs_first(name: str, kind: str, dimensions: int) -> bool:
    """Whether the official tensor has the outputs first, where we have them last."""
    # NCSN++ calls W what it stores with the inputs first, as we do.
    return kind == "kernel" and dimensions > 1 and not name.endswith(".W")


def _official_shape(published: Published, name: str, kind: str, shape: tuple) -> tuple[int, ...]:
    """Shape of a tensor in PyTorch layout, from that of our variable."""
    if not _outputs_first(name, kind, len(shape)):
        return shape
    window = published.window(name) if published.window else ()
    return (shape[-1], shape[-2] // math.prod(window), *window, *shape[:-2])


def _arrange(tensor: Any, name: str, kind: str) -> np.ndarray:
    """Brings one tensor into our order of axes, or raises a ValueError if it is damaged."""
    array = np.asarray(tensor, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite: the weights are damaged")
    return np.moveaxis(array, (0, 1), (-1, -2)) if _outputs_first(name, kind, array.ndim) else array


def _summary(names: set[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
