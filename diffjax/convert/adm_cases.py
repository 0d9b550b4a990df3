"""The flags of the official ADM scripts, and the checkpoints published with them.

Improved DDPM's scripts take the same flags, but for a few that later ones added.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["PUBLISHED", "from_flags", "is_flags"]

CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
DEFAULTS = dict(
    image_size=64,
    num_channels=128,
    num_res_blocks=2,
    num_heads=4,
    num_heads_upsample=-1,
    num_head_channels=-1,
    attention_resolutions=(16, 8),
    channel_mult="",
    dropout=0.0,
    class_cond=False,
    use_scale_shift_norm=True,
    resblock_updown=False,
    use_new_attention_order=False,
    learn_sigma=False,
    noise_schedule="linear",
    diffusion_steps=1000,
    rescale_timesteps=False,
    large_size=0,
    small_size=0,
)
CLASSIFIER_DEFAULTS = dict(
    classifier_width=128,
    classifier_depth=2,
    classifier_attention_resolutions=(32, 16, 8),
    classifier_use_scale_shift_norm=True,
    classifier_resblock_updown=True,
    classifier_pool="attention",
)
# They change the training or the sampling of a network, not what it is.
IGNORED = {
    "batch_size",
    "classifier_scale",
    "classifier_use_fp16",
    "lr",
    "num_samples",
    "rescale_learned_sigmas",
    "timestep_respacing",
    "use_checkpoint",
    "use_ddim",
    "use_fp16",
    "use_kl",
}

LSUN = dict(
    image_size=256,
    num_channels=256,
    attention_resolutions=(32, 16, 8),
    num_head_channels=64,
    learn_sigma=True,
    resblock_updown=True,
)
CONDITIONAL = LSUN | dict(class_cond=True)
UPSAMPLER = CONDITIONAL | dict(num_channels=192)
# What the authors' pages say of each checkpoint; fewer flags than there, where defaults serve.
PUBLISHED: tuple[dict[str, Any], ...] = (
    CONDITIONAL
    | dict(
        image_size=64,
        num_channels=192,
        num_res_blocks=3,
        dropout=0.1,
        noise_schedule="cosine",
        use_new_attention_order=True,
    ),
    CONDITIONAL | dict(image_size=128, num_heads=4, num_head_channels=-1),
    CONDITIONAL,
    CONDITIONAL | dict(image_size=512),
    LSUN,
    UPSAMPLER | dict(large_size=256, small_size=64, num_heads=4, num_head_channels=-1),
    UPSAMPLER | dict(large_size=512, small_size=128, attention_resolutions=(32, 16)),
    dict(image_size=64, classifier_depth=4, noise_schedule="cosine"),
    dict(image_size=128, classifier_depth=2),
    dict(image_size=256, classifier_depth=2),
    dict(image_size=512, classifier_depth=2),
    # Improved DDPM.
    dict(
        image_size=32,
        num_res_blocks=3,
        dropout=0.3,
        learn_sigma=True,
        noise_schedule="cosine",
        diffusion_steps=4000,
        rescale_timesteps=True,
    ),
    dict(
        image_size=64,
        num_res_blocks=3,
        learn_sigma=True,
        noise_schedule="cosine",
        diffusion_steps=4000,
        rescale_timesteps=True,
    ),
    dict(
        image_size=64,
        num_channels=192,
        num_res_blocks=3,
        learn_sigma=True,
        class_cond=True,
        noise_schedule="cosine",
        diffusion_steps=4000,
    ),
    dict(
        large_size=256,
        small_size=64,
        num_channels=192,
        learn_sigma=True,
        class_cond=True,
        diffusion_steps=4000,
    ),
    dict(
        image_size=256,
        num_heads=1,
        attention_resolutions=(16,),
        learn_sigma=True,
        use_scale_shift_norm=False,
    ),
)


def is_flags(case: Mapping[str, Any]) -> bool:
    """Whether arguments are flags of the scripts, not those of the constructor."""
    scripts = {"class_cond", "large_size", "learn_sigma", "num_channels", *CLASSIFIER_DEFAULTS}
    return bool(scripts & case.keys())


def from_flags(flags: Mapping[str, Any], classifier: bool | None = None) -> dict[str, Any]:
    """The constructor's arguments that the scripts make of their flags.

    Args:
        flags: By name; tuples may be written as the scripts' ``'32,16,8'``.
        classifier: Whether it is the classifier that is wanted of flags for both; None for one
            exactly if there are no flags for the U-Net.

    Raises:
        ValueError: If there is no such flag, or no multiples for the image size.
    """
    unknown = sorted(flags.keys() - DEFAULTS.keys() - CLASSIFIER_DEFAULTS.keys() - IGNORED)
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]!r} of the ADM scripts")
    value = DEFAULTS | CLASSIFIER_DEFAULTS | flags
    size = value["large_size"] or value["image_size"]
    if classifier is None:
        own = CLASSIFIER_DEFAULTS.keys() & flags.keys()
        classifier = bool(own) and "num_channels" not in flags
    multiples = CHANNEL_MULT | ({512: CHANNEL_MULT[256]} if value["large_size"] else {})
    channel_mult = value["channel_mult"] or multiples.get(size)
    if channel_mult is None:
        raise ValueError(f"channel_mult must be given: there is no default for {size} pixels")
    chain = {
        name: value[name] for name in ("noise_schedule", "diffusion_steps", "rescale_timesteps")
    }
    if classifier:
        return chain | dict(
            image_size=size,
            model_channels=value["classifier_width"],
            out_channels=1000,
            num_res_blocks=value["classifier_depth"],
            attention_resolutions=_rates(size, value["classifier_attention_resolutions"]),
            channel_mult=_numbers(channel_mult),
            num_head_channels=64,
            use_scale_shift_norm=value["classifier_use_scale_shift_norm"],
            resblock_updown=value["classifier_resblock_updown"],
            pool=value["classifier_pool"],
        )
    same = ("num_res_blocks", "dropout", "num_heads", "num_heads_upsample", "num_head_channels")
    same += ("use_scale_shift_norm", "resblock_updown", "use_new_attention_order")
    return (
        chain
        | {name: value[name] for name in same}
        | dict(
            image_size=size,
            model_channels=value["num_channels"],
            out_channels=6 if value["learn_sigma"] else 3,
            attention_resolutions=_rates(size, value["attention_resolutions"]),
            channel_mult=_numbers(channel_mult),
            num_classes=1000 if value["class_cond"] else None,
            super_resolution=bool(value["large_size"]),
            small_size=value["small_size"] if value["large_size"] else 0,
        )
    )


def _rates(size: int, resolutions: Any) -> tuple[int, ...]:
    return tuple(sorted(size // resolution for resolution in _numbers(resolutions)))


def _numbers(value: Any) -> tuple:
    """``(32, 16)`` of itself, of a list, of one number and of ``'32,16'``."""
    if isinstance(value, str):
        parts = (float(part) for part in value.split(","))
        return tuple(int(part) if part.is_integer() else part for part in parts)
    return tuple(value) if isinstance(value, list | tuple) else (value,)
