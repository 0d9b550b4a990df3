"""Checkpoints of the DDPM network under the names of its PyTorch version (ermongroup/ddim).

The published DDPM weights circulate in this form, converted from TensorFlow.
"""

import re
from collections.abc import Sequence

from diffjax.convert.common import Published
from diffjax.models.unet import UNet

__all__ = ["published"]

# Applied to "/path/of/modules/leaf", in this order.
NAMES = (
    (r"/(down|up)_(\d+)_(downsample|upsample)/", r"/\1/\2/\3/conv/"),
    (r"/(down|up)_(\d+)_block_(\d+)/", r"/\1/\2/block/\3/"),
    (r"/(down|up)_(\d+)_attention_(\d+)/", r"/\1/\2/attn/\3/"),
    (r"/middle_block_0/", "/mid/block_1/"),
    (r"/middle_block_1/", "/mid/block_2/"),
    (r"/middle_attention/", "/mid/attn_1/"),
    (r"/time_dense_(\d)/", r"/temb/dense/\1/"),
    (r"/time_dense/", "/temb_proj/"),
    (r"/(norm|conv)_0/", r"/\g<1>1/"),
    (r"/(norm|conv)_1/", r"/\g<1>2/"),
    (r"/shortcut/", "/nin_shortcut/"),
    (r"/out/", "/proj_out/"),
    (r"/(kernel|scale)$", "/weight"),
)


def published(
    *,
    image_size: int,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 2, 2, 2),
    num_res_blocks: int = 2,
    attn_resolutions: Sequence[int] = (16,),
    num_groups: int = 32,
    dropout: float = 0.1,
    channels: int = 3,
) -> Published:
    """The network that the official constructor would build.

    Args:
        image_size: Height and width in pixels.
        ch: Width of the first level.
        ch_mult: Width of each level in units of ``ch``.
        num_res_blocks: Residual blocks a level.
        attn_resolutions: Where attention is.
        num_groups: Groups of every normalisation, 32 in all that is published.
        dropout: Rate when training.
        channels: Of the image.

    Returns:
        The module and its names.
    """
    module = UNet(
        ch=ch,
        ch_mult=tuple(ch_mult),
        num_res_blocks=num_res_blocks,
        attn_resolutions=tuple(attn_resolutions),
        num_groups=num_groups,
        dropout=dropout,
    )
    return Published(module, (1, image_size, image_size, channels), _official_name)


def _official_name(path: str) -> str:
    """``'up_1_block_0/conv_1/kernel'`` -> ``'up.1.block.0.conv2.weight'``."""
    name = f"/{path}"
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name[1:].replace("/", ".")
