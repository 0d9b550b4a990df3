"""Published PyTorch checkpoints as variables of our networks, and back.

    tensors = convert.load('celebahq.pt')
    module, variables = convert.from_torch('ddpm', tensors, image_size=256)
    eps = module.apply(variables, x, time)

``tensors`` maps the official names to arrays; the keyword arguments are those of the official
constructor, as far as the tensors do not tell. Nothing here needs PyTorch.
"""

import ast
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from diffjax.convert import adm, ddpm, dit, inception, ncsnpp, uvit, vae
from diffjax.convert.common import (
    Published,
    Source,
    check,
    check_arguments,
    constructed,
    from_tensors,
    sources,
    to_tensors,
)
from diffjax.convert.files import load

__all__ = [
    "FAMILIES",
    "Published",
    "Source",
    "check",
    "from_torch",
    "infer",
    "load",
    "network",
    "parse",
    "published",
    "sources",
    "to_torch",
]

FAMILIES: dict[str, Callable[..., Published]] = {
    "adm": adm.published,
    "ddpm": ddpm.published,
    "dit": dit.published,
    "inception": inception.published,
    "ncsnpp": ncsnpp.published,
    "uvit": uvit.published,
    "vae": vae.published,
}
# Those whose tensors tell arguments: ``(tensors, case) -> case``; and a name that only they have.
INFER: dict[str, Callable[[Mapping, Mapping], dict]] = {
    "adm": adm.infer,
    "ddpm": ddpm.infer,
    "dit": dit.infer,
    "ncsnpp": ncsnpp.infer,
    "uvit": uvit.infer,
    "vae": vae.infer,
}
ANCHORS = {
    "adm": adm.ANCHOR,
    "ddpm": ddpm.ANCHOR,
    "dit": dit.ANCHOR,
    "inception": inception.ANCHOR,
    "ncsnpp": ncsnpp.ANCHOR,
    "uvit": uvit.ANCHOR,
    "vae": vae.ANCHOR,
}


def published(family: str, **case) -> Published:
    """A network of a family, with the official names of its parameters.

    Args:
        family: One of ``FAMILIES``.
        **case: Arguments of the official constructor.

    Returns:
        The module, the shape of its input and the names.

    Raises:
        ValueError: If there is no such family, or the arguments are not its constructor's.
    """
    return constructed(_family(family), case)


def infer(family: str, tensors: Mapping[str, Any], **case) -> dict[str, Any]:
    """Completes the arguments of the official constructor from the tensors of a checkpoint.

    Args:
        family: One of ``FAMILIES``.
        tensors: Official name -> array, in PyTorch layout.
        **case: What is known; it is believed.

    Returns:
        Arguments for :func:`published`.

    Raises:
        ValueError: If the checkpoint is another family's, or does not tell all: says what to give.
    """
    check_arguments(_family(family), case)
    others = [name for name, anchor in ANCHORS.items() if name != family and anchor in tensors]
    if ANCHORS.get(family, next(iter(tensors), "")) not in tensors:
        what = f"of family {others[0]!r}" if others else "of none of the families known here"
        raise ValueError(f"these are no tensors of family {family!r}: the checkpoint is {what}")
    return INFER[family](tensors, case) if family in INFER else case


def network(family: str, **case) -> nn.Module:
    """Our module of a published network, from the official constructor's arguments."""
    return published(family, **case).module


def from_torch(family: str, tensors: Mapping[str, Any], **case) -> tuple[nn.Module, dict]:
    """Our module of a published network, and its variables from a checkpoint.

    Args:
        family: One of ``FAMILIES``.
        tensors: Official name -> array, in PyTorch layout.
        **case: Arguments of the official constructor; those that the tensors tell may be left out.

    Returns:
        The module, and variables for its ``apply``, float32.

    Raises:
        ValueError: If the checkpoint does not fit the network in every name and shape, or holds
            numbers that are not finite.
    """
    network = published(family, **infer(family, tensors, **case))
    return network.module, from_tensors(network, tensors)


def to_torch(family: str, variables: Mapping[str, Any], **case) -> dict[str, Any]:
    """The inverse of :func:`from_torch`: a state dict that the official network loads.

    Args:
        family: One of ``FAMILIES``.
        variables: Of ``network(family, **case)``.
        **case: Arguments of the official constructor.

    Returns:
        Official name -> float32 array, in PyTorch layout.

    Raises:
        ValueError: If the variables are not those of the network.
    """
    return to_tensors(published(family, **case), variables)


def parse(text: str) -> dict[str, Any]:
    """Constructor arguments from a line: ``'image_size=64 channel_mult=1,2,3,4'``.

    The flags that come with a published checkpoint may be pasted as they are:
    ``'--image_size 64 --class_cond True'``.

    Raises:
        ValueError: If the line is neither.
    """
    words = [part for word in shlex.split(text) for part in word.lstrip("-").split("=", 1)]
    if len(words) % 2 or not all(name.isidentifier() for name in words[::2]):
        raise ValueError(f"cannot read {text!r}: write name=value, as in 'image_size=64 ch=128'")

    def value(word: str) -> Any:
        try:
            return ast.literal_eval(word)
        except (SyntaxError, ValueError):
            return word

    return dict(zip(words[::2], map(value, words[1::2]), strict=True))


def _family(family: str) -> Callable[..., Published]:
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]
