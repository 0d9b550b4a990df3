"""Checkpoints of the diffusion transformer under its authors' names (facebookresearch/DiT)."""

from diffjax.convert.common import Published
from diffjax.models.dit import DiT
from diffjax.models.embeddings import grid_positions

__all__ = ["published"]

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
    )


def _official_name(path: str) -> str:
    """``'blocks/qkv/kernel'`` -> ``'blocks.{}.attn.qkv.weight'``."""
    module, leaf = path.rsplit("/", 1)
    return f"{MODULES[module]}.{LEAVES[leaf]}"
