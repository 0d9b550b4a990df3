"""What all families share: from named PyTorch tensors to a tree of Flax variables."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

__all__ = ["Published", "Source", "from_tensors", "sources"]


class Published(NamedTuple):
    """A published network: our module of it, and what its authors call the parameters.

    Attributes:
        module: The network.
        input_shape: Shape of an input ``x``, a batch of one.
        official_name: Maps the path of one of our variables, for example
            ``'down_0_block_1/conv_0/kernel'``, to the official name. A ``{}`` in the name stands
            for the number of a layer: our variable stacks the tensors of all layers.
        constants: Tensors of the checkpoint that are no variables of ours, and their values.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    official_name: Callable[[str], str]
    constants: Mapping[str, np.ndarray] = {}


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
    x = jax.ShapeDtypeStruct(published.input_shape, jnp.float32)
    time = jax.ShapeDtypeStruct((), jnp.float32)
    variables = jax.eval_shape(published.module.init, jax.random.key(0), x, time)

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
        ValueError: If a tensor is missing, left over, of the wrong shape, or not the constant it
            should be.
    """
    table = sources(published)
    needed = {name for source in table.values() for name in source.names} | {*published.constants}
    for problem, names in (("lacks", needed - {*tensors}), ("has more than", {*tensors} - needed)):
        if names:
            raise ValueError(
                f"the checkpoint {problem} the network's tensors: {_summary(names)}; "
                "check the constructor's arguments"
            )
    for name, value in published.constants.items():
        tensor = np.asarray(tensors[name])
        if tensor.shape != value.shape or not np.allclose(tensor, value, rtol=0, atol=1e-5):
            raise ValueError(f"{name} differs from the network's constant; was it trained?")

    def variable(path, source):
        arrays = [_arrange(tensors[name], name, path[-1], source.shape) for name in source.names]
        return jnp.asarray(np.stack(arrays) if source.stacked else arrays[0])

    return unflatten_dict({path: variable(path, source) for path, source in table.items()})


def _arrange(tensor: Any, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Brings one tensor into our layout, or raises a ValueError if it does not fit."""
    array = np.asarray(tensor, np.float32)
    ours = np.moveaxis(array, (0, 1), (-1, -2)) if kind == "kernel" and array.ndim > 1 else array
    merges = len(shape) == 2 and ours.shape[-1:] == shape[-1:] and ours.size == math.prod(shape)
    if ours.shape != shape and not (kind == "kernel" and merges):
        raise ValueError(
            f"{name} has shape {array.shape}, but the network's variable has {shape}; "
            "check the constructor's arguments"
        )
    return ours.reshape(shape)


def _summary(names: set[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
