"""Published PyTorch checkpoints as variables of our networks.

    module = convert.network('ddpm', image_size=32, ch=128, ...)
    variables = convert.from_torch('ddpm', tensors, image_size=32, ch=128, ...)
    eps = module.apply(variables, x, time)

``tensors`` is a PyTorch state dict or any other mapping of the official names to arrays; the
keyword arguments are those of the official constructor. Nothing here needs PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from diffjax.convert import ddpm, dit
from diffjax.convert.common import Published, Source, from_tensors, sources

__all__ = ["FAMILIES", "Published", "Source", "from_torch", "network", "published", "sources"]

FAMILIES = {"ddpm": ddpm.published, "dit": dit.published}


def published(family: str, **case) -> Published:
    """A network of a family, with the official names of its parameters.

    Args:
        family: One of ``FAMILIES``.
        **case: Arguments of the official constructor.

    Returns:
        The module, the shape of its input and the names.

    Raises:
        ValueError: If there is no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family](**case)


def network(family: str, **case) -> nn.Module:
    """Our module of a published network, from the official constructor's arguments."""
    return published(family, **case).module


def from_torch(family: str, tensors: Mapping[str, Any], **case) -> dict:
    """Variables of our module from a published checkpoint.

    Args:
        family: One of ``FAMILIES``.
        tensors: Official name -> array, in PyTorch layout.
        **case: Arguments of the official constructor.

    Returns:
        Variables for ``network(family, **case).apply``, float32.

    Raises:
        ValueError: If the checkpoint does not fit the network in every name and shape.
    """
    return from_tensors(published(family, **case), tensors)
