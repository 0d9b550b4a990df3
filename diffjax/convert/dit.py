"""Checkpoints of the diffusion transformer under its authors' names (facebookresearch/DiT)."""

import math
from collections.abc import Mapping
from typing import Any

from diffjax.convert.common import Published, at_block
from diffjax.models.dit import DIT_SIZES, DiT
from diffjax.models.embeddings import grid_positions

__all__ = ["ANCHOR", "infer", "published"]

ANCHOR = "x_embedder.proj.weight"

MODULES = {
    "patch_embed": "x_embedder.proj",
    "time_dense_0": "t_embedder.mlp.0",
    "time_dense_1": "t_embedder.mlp.2",
    "label/table": "y_embedder.embedding_table",
    "blocks/qkv": "blocks.{}.attn.qkv",
    "blocks/proj": "blocks.{}.attn.proj",
    "blocks/mlp_0": "blocks.{}.mlp.fc1",
    "blocks/mlp_1": "blocks.{}.mlp.fc2",
    "blocks/modulation": "blocks.{}.adaLN_modulation.1",
    "modulation": "final_layer.adaLN_modulation.1",
    "out": "final_layer.linear",
}
LEAVES = {"kernel": "weight", "embedding": "weight", "bias": "bias"}


def published(
    *,
    input_size: int = 32,
    patch_size: int = 2,
    in_channels: int = 4,
    hidden_size: int = 1152,
    depth: int = 28,
    num_heads: int = 16,
    num_classes: int = 1000,
    learn_sigma: bool = True,
) -> Published:
    """The network that the official constructor would build; the defaults are its defaults.

    Args:
        input_size: Height and width of the latent.
        patch_size: Side of a patch.
        in_channels: Channels of the latent.
        hidden_size: Length of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        num_classes: Number of classes.
        learn_sigma: Whether the output channels are doubled.

    Returns:
        The module and its names. The position table, which the checkpoint holds as a frozen
        parameter, is a constant here.
    """
    module = DiT(
        patch_size=patch_size,
        width=hidden_size,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        learned_variance=learn_sigma,
    )
    grid = input_size // patch_size
    return Published(
        module,
        (1, input_size, input_size, in_channels),
        _official_name,
        constants={"pos_embed": grid_positions(grid, grid, hidden_size)[None]},
        window=lambda name: (patch_size, patch_size) if name == ANCHOR else (),
        settings={
            "schedule.name": "discrete_linear",
            "schedule.options": dict(steps=1000, beta_min=1e-4, beta_max=0.02),
            "sample.solver": "ancestral",
            "sample.options": dict(variance="learned" if learn_sigma else "small"),
            "sample.calls": 250,
            "sample.guidance_channels": 3 if in_channels == 4 else 0,
            "loss.label_dropout": 0.1,
            "loss.times": "discrete",
            "loss.target": "hybrid" if learn_sigma else "eps",
            "loss.weighting_options": dict(weight=1e-3) if learn_sigma else {},
        },
    )


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments from the tensors: all but the number of heads of an unknown size."""
    width, channels, patch, _ = tensors[ANCHOR].shape
    tokens = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    labels = tensors.get("y_embedder.embedding_table.weight")
    found = dict(
        input_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        in_channels=channels,
        hidden_size=width,
        depth=1 + max(at_block(name) for name in tensors if name.startswith("blocks.")),
        num_classes=0 if labels is None else labels.shape[0] - 1,
        learn_sigma=tensors["final_layer.linear.weight"].shape[0] == 2 * channels * patch**2,
    )
    heads = {size["width"]: size["num_heads"] for size in DIT_SIZES.values()}
    if width in heads:
        found["num_heads"] = heads[width]
    elif "num_heads" not in case:
        raise ValueError(f"no published DiT is {width} wide: give num_heads")
    return found | case


def _official_name(path: str) -> str:
    """``'blocks/qkv/kernel'`` -> ``'blocks.{}.attn.qkv.weight'``."""
    module, leaf = path.rsplit("/", 1)
    return f"{MODULES[module]}.{LEAVES[leaf]}"
