"""Checkpoints of U-ViT under its authors' names (baofff/U-ViT)."""

import math
import re
from collections.abc import Mapping
from typing import Any

from diffjax.convert.common import Published, at_block
from diffjax.models.uvit import UVIT_SIZES, UViT

__all__ = ["ANCHOR", "infer", "published"]

ANCHOR = "decoder_pred.weight"
# The tensors do not tell the heads, but the published widths do.
HEADS = {size["width"]: size["num_heads"] for size in UVIT_SIZES.values()}

# Applied to "/path/of/modules/leaf", in this order.
NAMES = (
    (r"^/(in|out)_blocks/", r"/\1_blocks/{}/"),
    (r"^/middle_block/", "/mid_block/"),
    (r"^/patch_embed/", "/patch_embed/proj/"),
    (r"^/time_dense_0/", "/time_embed/0/"),
    (r"^/time_dense_1/", "/time_embed/2/"),
    (r"^/label/table/embedding$", "/label_emb/weight"),
    (r"^/norm_out/", "/norm/"),
    (r"^/out/", "/decoder_pred/"),
    (r"^/final_conv/", "/final_layer/"),
    (r"/norm_0/", "/norm1/"),
    (r"/norm_1/", "/norm2/"),
    (r"(mid_block|\{\})/(qkv|proj)/", r"\1/attn/\2/"),
    (r"/mlp_0/", "/mlp/fc1/"),
    (r"/mlp_1/", "/mlp/fc2/"),
    (r"/skip/", "/skip_linear/"),
    (r"/(kernel|scale)$", "/weight"),
)


def published(
    *,
    img_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: int = 4,
    qkv_bias: bool = False,
    mlp_time_embed: bool = False,
    num_classes: int = -1,
    use_checkpoint: bool = False,
    conv: bool = True,
    skip: bool = True,
) -> Published:
    """The network that the official constructor would build; the defaults are its defaults.

    Args:
        img_size: Height and width of the image or latent.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        embed_dim: Length of a token.
        depth: Number of blocks beside the middle one.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLPs in units of ``embed_dim``.
        qkv_bias: Whether queries, keys and values have biases.
        mlp_time_embed: Whether the time passes through an MLP.
        num_classes: Rows of the label table; none or less for an unconditional network. With 1001
            rows the last is the null label of ImageNet's 1000 classes; other numbers have none.
        use_checkpoint: Without effect: what training recomputes is ``remat`` of the module.
        conv: Whether a convolution ends the network.
        skip: Whether there are long skip connections.

    Returns:
        The module and its names.
    """
    del use_checkpoint
    null_label = num_classes == 1001
    module = UViT(
        patch_size=patch_size,
        width=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        mlp_time_embed=mlp_time_embed,
        final_conv=conv,
        skip=skip,
        num_classes=max(num_classes - null_label, 0),
        null_label=null_label,
    )
    settings = {
        "schedule.name": "vp_linear",
        "schedule.options": {},
        # The small ones were drawn from by the SDE, those with classes by DPM-Solver.
        "sample.solver": "dpm_solver_2m" if num_classes > 0 else "euler_maruyama",
        "sample.grid": "log_snr" if num_classes > 0 else "uniform",
        "sample.calls": 50 if num_classes > 0 else 1000,
        "loss.label_dropout": 0.1 if null_label else 0.0,
    }
    in_runs = None
    if in_chans == 4 and not conv:  # the huge ones: Stable Diffusion's chain, counted from 1
        settings["schedule.name"] = "discrete_scaled_linear"
        settings["loss.times"] = "discrete"
        in_runs = module.clone(time_offset=1.0)
    return Published(
        module,
        (1, img_size, img_size, in_chans),
        _official_name,
        window=lambda name: (patch_size,) * 2 if name.startswith("patch_embed.") else (),
        settings=settings,
        in_runs=in_runs,
    )


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments from the tensors; of an unknown width, give the heads.

    Raises:
        ValueError: The number of heads, of which tensors tell nothing, is not given.
    """
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    classes = tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else -1
    heads = case.get("num_heads", HEADS.get(width))
    if heads is None:
        raise ValueError(f"no published U-ViT has embed_dim={width}: give num_heads")
    patches = tensors["pos_embed"].shape[1] - (2 if classes > 0 else 1)
    blocks = {at_block(name) for name in tensors if name.startswith("in_blocks.")}
    return dict(
        img_size=patch * math.isqrt(patches),
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=2 * len(blocks),
        num_heads=heads,
        mlp_ratio=tensors["mid_block.mlp.fc1.weight"].shape[0] // width,
        qkv_bias="mid_block.attn.qkv.bias" in tensors,
        mlp_time_embed="time_embed.0.weight" in tensors,
        num_classes=classes,
        conv="final_layer.weight" in tensors,
        skip="out_blocks.0.skip_linear.weight" in tensors,
    ) | dict(case)


def _official_name(path: str) -> str:
    """``'in_blocks/qkv/kernel'`` -> ``'in_blocks.{}.attn.qkv.weight'``."""
    name = f"/{path}"
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name[1:].replace("/", ".")
