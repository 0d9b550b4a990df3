"""Checkpoints of NCSN++ and DDPM++ under their authors' names (yang-song/score_sde_pytorch).

The official modules are numbered in the order in which they are made, so the numbers are found by
going through the network in that order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffjax.convert.common import Published
from diffjax.models.ncsnpp import NCSNpp

__all__ = ["ANCHOR", "PUBLISHED", "infer", "published"]

ANCHOR = "sigmas"

# Settings that change the network and have one value in all that is published.
FIXED = dict(
    name="ncsnpp",
    resblock_type="biggan",
    conditional=True,
    resamp_with_conv=True,
    normalization="GroupNorm",
    nonlinearity="swish",
    attention_type="ddpm",
    conv_size=3,
)
# How the variance-preserving networks were trained and drawn from.
VP_SETTINGS = {
    "schedule.name": "vp_linear",
    "schedule.options": {},
    "sample.solver": "euler_maruyama",
    "sample.calls": 1000,
}
# Settings that a checkpoint cannot show: of training, or of the initial weights.
IGNORED = {"beta_max", "beta_min", "ema_rate", "init_scale", "sigma_begin"}

RESIDUAL = dict(fir=True, progressive_input="residual")
PYRAMIDS = dict(fir=True, progressive="output_skip", progressive_input="input_skip")
VE = dict(centered=False, scale_by_sigma=True)
# The published configs by their files' names: how many tensors they have, and what they set.
PUBLISHED = {
    "vp/cifar10_ddpmpp_continuous": (565, dict(image_size=32)),
    "vp/cifar10_ddpmpp_deep_continuous": (957, dict(image_size=32, num_res_blocks=8)),
    "vp/cifar10_ncsnpp_continuous": (571, dict(image_size=32, **RESIDUAL)),
    "vp/cifar10_ncsnpp_deep_continuous": (963, dict(image_size=32, num_res_blocks=8, **RESIDUAL)),
    "ve/cifar10_ncsnpp_continuous": (
        572,
        dict(image_size=32, embedding_type="fourier", **RESIDUAL, **VE),
    ),
    "ve/cifar10_ncsnpp_deep_continuous": (
        964,
        dict(image_size=32, num_res_blocks=8, embedding_type="fourier", **RESIDUAL, **VE),
    ),
    "ve/celeba_ncsnpp": (571, dict(image_size=64, sigma_max=90.0, **RESIDUAL, **VE)),
    "ve/celebahq_256_ncsnpp_continuous": (
        646,
        dict(
            image_size=256,
            ch_mult=(1, 1, 2, 2, 2, 2, 2),
            num_res_blocks=2,
            dropout=0.0,
            embedding_type="fourier",
            sigma_max=348.0,
            num_scales=2000,
            **PYRAMIDS,
            **VE,
        ),
    ),
    "ve/ffhq_ncsnpp_continuous": (
        554,
        dict(
            image_size=1024,
            nf=16,
            ch_mult=(1, 2, 4, 8, 16, 32, 32, 32),
            num_res_blocks=1,
            dropout=0.0,
            embedding_type="fourier",
            sigma_max=1348.0,
            num_scales=2000,
            **PYRAMIDS,
            **VE,
        ),
    ),
}

# What is inside a numbered module: "/our/path/leaf" after the number, in this order.
NAMES = (
    (r"/(q|k|v|out)/kernel$", r"/\1/W"),
    (r"/(q|k|v|out)/bias$", r"/\1/b"),
    (r"/q/", "/NIN_0/"),
    (r"/k/", "/NIN_1/"),
    (r"/v/", "/NIN_2/"),
    (r"/out/", "/NIN_3/"),
    (r"/norm_(\d)/", r"/GroupNorm_\1/"),
    (r"/norm/", "/GroupNorm_0/"),
    (r"/conv_(\d)/", r"/Conv_\1/"),
    (r"/time_dense/", "/Dense_0/"),
    (r"/shortcut/", "/Conv_2/"),
    (r"/frequencies$", "/W"),
    (r"/(kernel|scale)$", "/weight"),
)


def published(
    *,
    image_size: int,
    num_channels: int = 3,
    centered: bool = True,
    nf: int = 128,
    ch_mult: Sequence[int] = (1, 2, 2, 2),
    num_res_blocks: int = 4,
    attn_resolutions: Sequence[int] = (16,),
    dropout: float = 0.1,
    fir: bool = False,
    fir_kernel: Sequence[int] = (1, 3, 3, 1),
    skip_rescale: bool = True,
    progressive: str = "none",
    progressive_input: str = "none",
    progressive_combine: str = "sum",
    embedding_type: str = "positional",
    fourier_scale: float = 16.0,
    scale_by_sigma: bool = False,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    num_scales: int = 1000,
    **settings,
) -> Published:
    """The network of a config of the official code, its sections ``model`` and ``data`` in one.

    Args:
        image_size: Height and width in pixels.
        num_channels: Of the image.
        centered: Whether images are in [-1, 1].
        nf: Width of the first level.
        ch_mult: Width of each level in units of ``nf``.
        num_res_blocks: Residual blocks a level.
        attn_resolutions: Where attention is.
        dropout: Rate when training.
        fir: Whether resampling is filtered.
        fir_kernel: Taps of the filter.
        skip_rescale: Whether shortcuts are rescaled.
        progressive: Pyramid of the output.
        progressive_input: Pyramid of the input.
        progressive_combine: How ``'input_skip'`` joins.
        embedding_type: ``'positional'``, or ``'fourier'`` for the log of a noise level.
        fourier_scale: Of the frequencies.
        scale_by_sigma: Whether the output is divided by the noise level.
        sigma_min: Smallest noise level.
        sigma_max: Largest.
        num_scales: How many of them.
        **settings: Other settings of the config. Those of the network must be what all that is
            published has; those of training have no influence.

    Returns:
        The module and its names. The table of noise levels is a constant here.

    Raises:
        ValueError: A setting that no published network has.
    """
    for setting, value in settings.items():
        if setting not in IGNORED and FIXED.get(setting) != value:
            raise ValueError(f"no published NCSN++ has {setting}={value!r}; check the settings")
    module = NCSNpp(
        ch=nf,
        ch_mult=tuple(ch_mult),
        num_res_blocks=num_res_blocks,
        attn_resolutions=tuple(attn_resolutions),
        dropout=dropout,
        fir_kernel=tuple(fir_kernel) if fir else (),
        progressive=progressive,
        progressive_input=progressive_input,
        progressive_combine=progressive_combine,
        skip_rescale=skip_rescale,
        time_embedding="log_fourier" if embedding_type == "fourier" else embedding_type,
        fourier_scale=fourier_scale,
        centered=centered,
        scale_by_sigma=scale_by_sigma,
        sigmas=(sigma_min, sigma_max, num_scales),
    )
    numbers = {name: number for number, name in enumerate(_in_order(module, image_size))}
    pyramid_layer = (
        "Conv2d_0" if fir and "residual" in (progressive, progressive_input) else "Conv_0"
    )

    # Convolutions of one pixel, which are dense here: shortcuts, and the input as it is added.
    dense_here = r"\.Conv_2\.weight$"
    if progressive_input == "input_skip":
        steps = [str(number) for name, number in numbers.items() if name.endswith("_pyramid")]
        dense_here += rf"|\.({'|'.join(steps)})\.Conv_0\.weight$"

    def official_name(path: str) -> str:
        """``'down_0_block_1/conv_1/kernel'`` -> ``'all_modules.5.Conv_1.weight'``."""
        name, *inside = path.split("/")
        if name.endswith("_pyramid"):
            inside = [pyramid_layer, inside[-1]]
        rest = "/" + "/".join(inside)
        for pattern, replacement in NAMES:
            rest = re.sub(pattern, replacement, rest)
        return f"all_modules.{numbers[name]}{rest}".replace("/", ".")

    return Published(
        module,
        (1, image_size, image_size, num_channels),
        official_name,
        constants={"sigmas": np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))},
        window=lambda name: (1, 1) if re.search(dense_here, name) else (),
        settings=VP_SETTINGS if not scale_by_sigma else _ve_settings(module, image_size),
        # On images in [-1, 1], with what is divided by the noise left to the parametrisation.
        in_runs=module.clone(centered=True, scale_by_sigma=False),
    )


def _ve_settings(module: NCSNpp, image_size: int) -> dict[str, Any]:
    """How the variance-exploding networks were trained, on images in [0, 1], and drawn from.

    Those that are told an index of their table of noise levels have none: a run tells the level.
    """
    if module.time_embedding != "log_fourier":
        return {}
    smallest, largest, number = module.sigmas
    snr = {256: 0.075, 1024: 0.15}.get(image_size, 0.16)
    return {
        "schedule.name": "ve",
        "schedule.options": dict(sigma_min=2.0 * smallest, sigma_max=2.0 * largest),
        "prediction.parametrization": "ve",
        "sample.solver": "predictor_corrector",
        "sample.options": dict(predictor="reverse_diffusion", corrector="langevin", snr=snr),
        "sample.calls": 2 * number + 1,  # two a step, and the step to the data
    }


def infer(tensors: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the arguments: of a published config, named by ``config`` if tensors do not tell.

    Raises:
        ValueError: The tensors fit several published configs, or none.
    """
    given = {name: value for name, value in case.items() if name != "config"}
    if "config" in case:
        if case["config"] not in PUBLISHED:
            raise ValueError(f"no config {case['config']!r}; there are {', '.join(PUBLISHED)}")
        return PUBLISHED[case["config"]][1] | given
    if "image_size" in case:
        return given
    fitting = [name for name, (number, _) in PUBLISHED.items() if number == len(tensors)]
    if len(fitting) != 1:
        several = f"the networks of {' and '.join(fitting)}: give config=NAME"
        none = "none of the published networks: give the settings, image_size first"
        raise ValueError(f"these tensors are those of {several if fitting else none}")
    return PUBLISHED[fitting[0]][1] | given


def _in_order(module: NCSNpp, image_size: int) -> Iterator[str]:
    """Our names of the official modules, in their order."""
    levels = range(len(module.ch_mult))
    attends = [image_size >> level in module.attn_resolutions for level in levels]
    if module.time_embedding != "positional":
        yield "fourier"
    yield from ("time_dense_0", "time_dense_1", "conv_in")
    for level in levels:
        if level > 0:
            yield f"down_{level - 1}_downsample"
            if module.progressive_input != "none":
                yield f"down_{level - 1}_pyramid"
        for j in range(module.num_res_blocks):
            yield f"down_{level}_block_{j}"
            if attends[level]:
                yield f"down_{level}_attention_{j}"
    yield from ("middle_block_0", "middle_attention", "middle_block_1")
    for level in reversed(levels):
        for j in range(module.num_res_blocks + 1):
            yield f"up_{level}_block_{j}"
        if attends[level]:
            yield f"up_{level}_attention"
        lowest = level == levels[-1]
        if module.progressive == "output_skip" or (module.progressive == "residual" and lowest):
            yield from (f"up_{level}_pyramid_norm", f"up_{level}_pyramid_conv")
        elif module.progressive == "residual":
            yield f"up_{level}_pyramid"
        if level > 0:
            yield f"up_{level}_upsample"
    if module.progressive != "output_skip":
        yield from ("out_norm", "out_conv")
