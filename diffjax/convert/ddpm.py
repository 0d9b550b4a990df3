"""Checkpoints of the DDPM network under the names of its PyTorch version (ermongroup/ddim).

The published DDPM weights circulate in this form, converted from TensorFlow.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffjax.convert.common import Published, at_block
from diffjax.models.unet import UNet

__all__ = ["ANCHOR", "infer", "published"]

ANCHOR = "temb.dense.0.weight"

# The published networks: width and multiples, and their image size.
SIZES = {
    (128, (1, 2, 2, 2)): 32,
    (128, (1, 2, 2, 2, 4)): 64,
    (128, (1, 1, 2, 2, 4, 4)): 256,
}
DENSE_HERE = r"(\.nin_shortcut|\.attn\.\d+\.\w+|\.attn_1\.\w+)\.weight$"

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
    return Published(
        module,
        (1, image_size, image_size, channels),
        _official_name,
        window=lambda name: (1, 1) if re.search(DENSE_HERE, name) else (),
        settings={
            "schedule.name": "discrete_linear",
            "schedule.options": dict(steps=1000, beta_min=1e-4, beta_max=0.02),
            "loss.times": "discrete",
            "sample.solver": "ancestral",
            # The networks of 256x256 pixels were trained and drawn from with the small variances.
            "sample.options": dict(variance="small" if image_size >= 256 else "large"),
            "sample.calls": 1000,
            "sample.threshold": "static",
            "train.batch_size": 64 if image_size >= 256 else 128,
        },
    )


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments from the tensors; of an unknown network, give the image size."""
    ch, channels = tensors["conv_in.weight"].shape[:2]
    blocks = [
        name for name in tensors if re.fullmatch(r"down\.\d+\.block\.\d+\.conv1\.weight", name)
    ]
    levels = 1 + max(map(at_block, blocks))
    found = dict(
        ch=ch,
        ch_mult=tuple(
            tensors[f"down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(levels)
        ),
        num_res_blocks=sum(name.startswith("down.0.") for name in blocks),
        channels=channels,
    )
    size = case.get("image_size") or SIZES.get((ch, found["ch_mult"]))
    if size is None:
        raise ValueError(
            f"no published DDPM has ch={ch} and ch_mult={found['ch_mult']}: give image_size"
        )
    attention = (i for i in range(levels) if f"down.{i}.attn.0.q.weight" in tensors)
    found |= dict(image_size=size, attn_resolutions=tuple(size >> i for i in attention))
    return found | case


def _official_name(path: str) -> str:
    """``'up_1_block_0/conv_1/kernel'`` -> ``'up.1.block.0.conv2.weight'``."""
    name = f"/{path}"
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name[1:].replace("/", ".")
