"""Checkpoints of Improved DDPM and ADM under their authors' names (openai/guided-diffusion).

The U-Net, the super-resolution network and the classifier, from the arguments of their constructors
or from the flags of the official scripts, which is what the checkpoints are published with.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffjax.convert.adm_cases import PUBLISHED, from_flags, is_flags
from diffjax.convert.common import Published, at_block, check_arguments, constructed
from diffjax.models.adm import ADM, ADMClassifier, ADMSuperResolution

__all__ = ["ANCHOR", "infer", "published"]

# A tensor that every checkpoint of the family has, and no other family's.
ANCHOR = "input_blocks.0.0.weight"

BLOCK = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "time_dense": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "out": "proj_out",
}
OUTSIDE = {
    "time_dense_0": "time_embed.0",
    "time_dense_1": "time_embed.2",
    "label/table": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
POOLS = {
    None: {},
    "adaptive": {"out": "out.3"},
    "attention": {"pool": "out.2", "pool/qkv": "out.2.qkv_proj", "pool/out": "out.2.c_proj"},
    "spatial": {"hidden": "out.0", "out": "out.2"},
    "spatial_v2": {"hidden": "out.0", "norm_out": "out.1", "out": "out.3"},
}
LEAVES = {
    "bias": "bias",
    "embedding": "weight",
    "kernel": "weight",
    "positions": "positional_embedding",
    "scale": "weight",
}


def published(**case) -> Published:
    """The network that the official constructor, or the official script, would build.

    Args:
        **case: As of :func:`_published`, or the scripts' flags (``num_channels``, ``class_cond``,
            ``classifier_width``, ``large_size``, ...), values as there.

    Returns:
        The module and its names.
    """
    return constructed(_published, from_flags(case) if is_flags(case) else case)


def _published(
    *,
    image_size: int,
    model_channels: int,
    out_channels: int,
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    in_channels: int = 3,
    dropout: float = 0.0,
    channel_mult: Sequence[float] = (1, 2, 4, 8),
    conv_resample: bool = True,
    num_classes: int | None = None,
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    resblock_updown: bool = False,
    use_new_attention_order: bool = False,
    use_fp16: bool = False,
    pool: str | None = None,
    super_resolution: bool = False,
    small_size: int = 0,
    noise_schedule: str = "linear",
    diffusion_steps: int = 1000,
    rescale_timesteps: bool = False,
) -> Published:
    """The network of the constructor's arguments.

    Args:
        image_size: Height and width in pixels.
        model_channels: Unit of width.
        out_channels: Channels of the output, or classes of a classifier.
        num_res_blocks: Residual blocks a level.
        attention_resolutions: Where attention is: by what factor the image is smaller there.
        in_channels: Channels of the image.
        dropout: Rate when training.
        channel_mult: Width of each level in units of ``model_channels``.
        conv_resample: Whether convolutions change the resolution, where blocks do not.
        num_classes: Number of classes, None for an unconditional network.
        num_heads: Attention heads.
        num_head_channels: Channels a head; -1 for ``num_heads`` heads.
        num_heads_upsample: Attention heads on the way up; -1 for as many.
        use_scale_shift_norm: Whether the time scales and shifts.
        resblock_updown: Whether residual blocks change the resolution.
        use_new_attention_order: How queries, keys and values are packed.
        use_fp16: Without effect: the converted weights are float32.
        pool: Pooling of a classifier; None for a U-Net.
        super_resolution: Whether the network sees a smaller image too.
        small_size: Height and width of that; 0 for a quarter, as of both that are published.
        noise_schedule: ``'linear'`` or ``'cosine'``: what the network was trained with.
        diffusion_steps: Length of the chain it was trained on.
        rescale_timesteps: Whether the network is told 0..1000 whatever the length.
    """
    del use_fp16
    shared = dict(
        ch=model_channels,
        ch_mult=tuple(channel_mult),
        num_res_blocks=num_res_blocks,
        attn_resolutions=tuple(image_size // rate for rate in attention_resolutions),
        num_heads=num_heads,
        head_channels=max(num_head_channels, 0),
        new_attention_order=use_new_attention_order,
        scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        conv_resample=conv_resample,
        dropout=dropout,
        time_scale=1000 / diffusion_steps if rescale_timesteps else 1.0,
    )
    learned = pool is None and out_channels == 2 * in_channels
    if pool is not None:
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; there are {', '.join(filter(None, POOLS))}")
        module = ADMClassifier(num_classes=out_channels, pool=pool, **shared)
    else:
        module = (ADMSuperResolution if super_resolution else ADM)(
            num_heads_upsample=max(num_heads_upsample, 0),
            channels=None if learned or out_channels == in_channels else out_channels,
            num_classes=num_classes or 0,
            null_label=False,
            learned_variance=learned,
            **shared,
        )
    modules = OUTSIDE | POOLS[pool]
    return Published(
        module,
        (1, image_size, image_size, in_channels),
        functools.partial(_official_name, module, modules, image_size),
        window=functools.partial(_window, pool),
        settings=_settings(learned, noise_schedule, diffusion_steps)
        | ({"data.low_res": small_size or image_size // 4} if super_resolution else {}),
    )


def _settings(learned: bool, noise_schedule: str, steps: int) -> dict[str, Any]:
    if noise_schedule not in ("linear", "cosine"):
        raise ValueError(f"noise_schedule must be 'linear' or 'cosine', got {noise_schedule!r}")
    linear = dict(beta_min=0.1 / steps, beta_max=20 / steps) if noise_schedule == "linear" else {}
    variances = {"loss.target": "hybrid", "loss.weighting_options": dict(weight=1e-3)}
    return {
        "schedule.name": f"discrete_{noise_schedule}",
        "schedule.options": dict(steps=steps, **linear),
        "loss.times": "discrete",
        "sample.solver": "ancestral",
        "sample.options": dict(variance="learned" if learned else "large"),
        "sample.calls": min(250, steps),
        "sample.threshold": "static",
    } | (variances if learned else {})


def _official_name(module, modules: Mapping[str, str], image_size: int, path: str) -> str:
    """``'up_1_block_0/conv_1/kernel'`` -> ``'output_blocks.3.0.out_layers.3.weight'``."""
    above, leaf = path.rsplit("/", 1)
    if above in modules:
        return f"{modules[above]}.{LEAVES[leaf]}"
    block, _, layer = above.partition("/")
    return ".".join(
        filter(None, (_place(module, image_size, block), BLOCK.get(layer), LEAVES[leaf]))
    )


def _place(module, image_size: int, block: str) -> str:
    """``'down_1_block_0'`` -> ``'input_blocks.3.0'``: all stages of a direction in one list."""
    a_level, levels = module.num_res_blocks + 1, len(module.ch_mult)
    if block.startswith("middle"):
        return "middle_block." + {"block_0": "0", "attention": "1", "block_1": "2"}[block[7:]]
    direction, level, kind, *index = block.split("_")
    level, j = int(level), int(index[0]) if index else 0
    convolves = not module.resblock_updown
    if direction == "down":
        if kind == "downsample":
            return f"input_blocks.{(level + 1) * a_level}.0{'.op' if convolves else ''}"
        return f"input_blocks.{1 + level * a_level + j}.{int(kind == 'attention')}"
    above = (levels - 1 - level) * a_level
    if kind == "upsample":  # the last of its stage, behind attention where there is one
        last = 1 + (image_size >> level in module.attn_resolutions)
        return f"output_blocks.{above + a_level - 1}.{last}{'.conv' if convolves else ''}"
    return f"output_blocks.{above + j}.{int(kind == 'attention')}"


def _window(pool: str | None, name: str) -> tuple[int, ...]:
    if re.search(r"\.(qkv|proj_out|qkv_proj|c_proj)\.weight$", name):
        return (1,)
    head = pool == "adaptive" and name == "out.3.weight"
    return (1, 1) if head or name.endswith("skip_connection.weight") else ()


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments from the tensors, and from what is published if that fits.

    Raises:
        ValueError: Image size or heads, of which tensors tell nothing, are not given.
    """
    classifier = not any(name.startswith("output_blocks.") for name in tensors)
    if is_flags(case):
        case = from_flags(case, classifier)
    check_arguments(_published, case)
    found = _of_classifier(tensors) if classifier else _of_unet(tensors, case)
    known = found | {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}
    for flags in PUBLISHED:
        candidate = from_flags(flags)
        if all(candidate.get(key, value) == value for key, value in known.items()):
            return candidate | known
    lacking = [] if "image_size" in known else ["image_size"]
    if not known.keys() & {"num_heads", "num_head_channels"}:
        lacking.append("num_head_channels (or num_heads)")
    if lacking:
        raise ValueError(f"this is none of the published networks: give {' and '.join(lacking)}")
    return known


def _of_unet(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    given, out = tensors[ANCHOR].shape[1], tensors["out.2.weight"].shape[0]
    ups = [
        n for n in tensors if re.match(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", n)
    ]
    stages = 1 + max(at_block(name) for name in tensors if name.startswith("input_blocks."))
    a_level = 1 + min(map(at_block, ups)) if ups else stages
    larger = "in_channels" not in case and given == 6 and out in (3, 6)
    super_resolution = larger or given == 2 * case.get("in_channels", given)
    found = _of_trunk(tensors, a_level, stages) | dict(
        in_channels=given // 2 if super_resolution else given,
        out_channels=out,
        num_classes=None,
        super_resolution=super_resolution,
    )
    if "label_emb.weight" in tensors:
        found["num_classes"] = tensors["label_emb.weight"].shape[0]
    return found


def _of_classifier(tensors: Mapping[str, Any]) -> dict[str, Any]:
    if "out.2.positional_embedding" in tensors:
        pool, last = "attention", "out.2.c_proj.bias"
    elif "out.2.weight" in tensors:
        pool, last = "spatial", "out.2.bias"
    else:
        pool = "spatial_v2" if "out.1.weight" in tensors else "adaptive"
        last = "out.3.bias"
    stages = 1 + max(at_block(name) for name in tensors if name.startswith("input_blocks."))
    divisors = [n for n in range(2, stages + 1) if stages % n == 0]
    fitting = [n for n in divisors if _is_period(tensors, n, stages)]
    found = _of_trunk(tensors, fitting[0], stages) if len(fitting) == 1 else {}
    found |= dict(
        model_channels=tensors["time_embed.0.weight"].shape[1],
        in_channels=tensors[ANCHOR].shape[1],
        out_channels=tensors[last].shape[0],
        pool=pool,
    )
    if pool == "attention" and "channel_mult" in found:
        side = math.isqrt(tensors["out.2.positional_embedding"].shape[1] - 1)
        found["image_size"] = side << (len(found["channel_mult"]) - 1)
    return found


def _is_period(tensors: Mapping[str, Any], period: int, stages: int) -> bool:
    """Whether every ``period``-th stage may be the one that halves the resolution."""
    halving = range(period, stages, period)

    def has(i, part):
        return f"input_blocks.{i}.{part}.weight" in tensors

    levels = [range(start + 1, start + period) for start in range(0, stages, period)]
    return (
        not any(has(i, "1.qkv") or has(i, "0.skip_connection") for i in halving)
        and not any(has(i, "0.skip_connection") for level in levels for i in level[1:])
        and all(len({has(i, "1.qkv") for i in level}) == 1 for level in levels)
    )


def _of_trunk(tensors: Mapping[str, Any], a_level: int, stages: int) -> dict[str, Any]:
    """What the way down tells: stages come in levels, of which all but the first begin halving."""
    ch, firsts = tensors["time_embed.0.weight"].shape[1], range(1, stages, a_level)
    widths = [tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in firsts]
    embedding = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    attention = [i for i, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in tensors]
    halved = f"input_blocks.{a_level}.0"
    return dict(
        model_channels=ch,
        num_res_blocks=a_level - 1,
        attention_resolutions=tuple(2**level for level in attention),
        channel_mult=tuple(w // ch if w % ch == 0 else w / ch for w in widths),
        use_scale_shift_norm=embedding == 2 * widths[0],
        resblock_updown=f"{halved}.in_layers.0.weight" in tensors,
        conv_resample=any(name.startswith(f"{halved}.") for name in tensors),
    )
