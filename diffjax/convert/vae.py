"""Checkpoints of the KL autoencoder under its names in diffusers (AutoencoderKL)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffjax.convert.common import Published, at_block
from diffjax.models.vae import AutoencoderKL

__all__ = ["ANCHOR", "infer", "published"]

ANCHOR = "post_quant_conv.weight"
# What attention's layers were called before; the published files are of that time.
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
DENSE_HERE = r"(quant_conv|conv_shortcut)\.weight$"

# Applied to "/path/of/modules/leaf", in this order.
NAMES = (
    (r"/(down|up)_(\d+)_block_(\d+)/", r"/\1_blocks/\2/resnets/\3/"),
    (r"/(down|up)_(\d+)_(downsample|upsample)/", r"/\1_blocks/\2/\3rs/0/conv/"),
    (r"/middle_block_(\d)/", r"/mid_block/resnets/\1/"),
    (r"/middle_attention/", "/mid_block/attentions/0/"),
    (r"/norm_out/", "/conv_norm_out/"),
    (r"/norm/", "/group_norm/"),
    (r"/(norm|conv)_0/", r"/\g<1>1/"),
    (r"/(norm|conv)_1/", r"/\g<1>2/"),
    (r"/shortcut/", "/conv_shortcut/"),
    (r"/(q|k|v)/", r"/to_\1/"),
    (r"/out/", "/to_out/0/"),
    (r"/(kernel|scale)$", "/weight"),
)


def published(
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
    up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
    block_out_channels: Sequence[int] = (64,),
    layers_per_block: int = 1,
    latent_channels: int = 4,
    norm_num_groups: int = 32,
    sample_size: int = 32,
    scaling_factor: float = 0.18215,
) -> Published:
    """The network that the official constructor would build; the defaults are its defaults.

    Args:
        in_channels: Channels of the image.
        out_channels: The same.
        down_block_types: Kinds of the encoder's blocks.
        up_block_types: Kinds of the decoder's.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks a level.
        latent_channels: Channels of a latent.
        norm_num_groups: Groups of every normalisation.
        sample_size: Height and width of an image.
        scaling_factor: Factor on the latents.

    Returns:
        The module and its names.

    Raises:
        ValueError: Blocks of another kind, or other channels out than in.
    """
    kinds = {*down_block_types} | {*up_block_types}
    if kinds != {"DownEncoderBlock2D", "UpDecoderBlock2D"} or in_channels != out_channels:
        raise ValueError(
            "the KL autoencoder here has DownEncoderBlock2D and UpDecoderBlock2D only, and as many "
            f"channels out as in; got {sorted(kinds)}, {in_channels} and {out_channels}"
        )
    module = AutoencoderKL(
        widths=tuple(block_out_channels),
        num_res_blocks=layers_per_block,
        latent_channels=latent_channels,
        channels=in_channels,
        num_groups=norm_num_groups,
        scale=scaling_factor,
    )
    return Published(
        module,
        (1, sample_size, sample_size, in_channels),
        _official_name,
        window=lambda name: (1, 1) if re.search(DENSE_HERE, name) else (),
        renamed=_renamed,
        # It knows no process, but every config has one.
        settings={
            "loss.target": "l1",
            "schedule.name": "edm",
            "sample.solver": "ddim",
            "sample.calls": 50,
        },
    )


def _renamed(name: str) -> str:
    """``'decoder.mid_block.attentions.0.query.bias'`` -> ``'... .to_q.bias'``."""
    return re.sub(rf"\.({'|'.join(OLDER)})\.(?=\w+$)", lambda old: f".{OLDER[old[1]]}.", name)


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments from the tensors; what they do not tell is Stable Diffusion's."""
    down = [name for name in tensors if re.match(r"encoder\.down_blocks\.\d+\.resnets", name)]
    levels = 1 + max(map(at_block, down))
    first = {name.split(".")[4] for name in down if at_block(name) == 0}
    return dict(
        in_channels=tensors["encoder.conv_in.weight"].shape[1],
        out_channels=tensors["decoder.conv_out.weight"].shape[0],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(
            tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0]
            for i in range(levels)
        ),
        layers_per_block=len(first),
        latent_channels=tensors[ANCHOR].shape[0],
        sample_size=256,
    ) | dict(case)


def _official_name(path: str) -> str:
    """``'encoder/middle_attention/q/bias'`` -> ``'encoder.mid_block.attentions.0.to_q.bias'``."""
    name = f"/{path}"
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name[1:].replace("/", ".")
