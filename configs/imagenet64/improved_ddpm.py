"""Improved denoising diffusion probabilistic models on ImageNet at 64x64, as published.

Paper     Nichol & Dhariwal 2021, arXiv:2102.09672, table 1: 4000 steps, cosine, L_hybrid, 1.5M
          updates; and table 4, the class-conditional network of 273,049,350 parameters
Command   python main.py --config configs/imagenet64/improved_ddpm.py --workdir runs/id --mode train
Expected  FID 19.2, at most 3.57 bits per dimension; conditional: FID 2.92 in 250 steps (paper)
Hardware  the paper does not say
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Variants  improved_ddpm.py:conditional  the larger network, told the class
          improved_ddpm.py:respaced     the same training, drawn in 100 of the 4000 steps
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:downsampled_imagenet/64x64",
        options=dict(),
        flip=False,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(64, 64, 3),
        num_classes=0,
    )

    config.network = "adm"  # 121,063,942 parameters
    config.model = dict(
        ch=128,
        ch_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attn_resolutions=(16, 8),
        num_heads=4,
        resblock_updown=False,
        time_scale=0.25,
        dropout=0.0,
        dtype="float32",
    )

    config.schedule = dict(name="discrete_cosine", options=dict(steps=4000))
    config.prediction = dict(parametrization="eps", sigma_data=0.5, learned_variance=True)
    config.loss = dict(
        target="hybrid",
        weighting="",
        weighting_options=dict(weight=1e-3),
        times="discrete",
        times_options=dict(),
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(b1=0.9, b2=0.999, weight_decay=0.0),
        learning_rate=1e-4,
        warmup_steps=0,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=1_500_000,
        batch_size=128,
        microbatches=1,
        log_every=100,
        checkpoint_every=10_000,
        keep_last=2,
        keep_every=100_000,
        sample_every=50000,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=50_000,
        batch_size=64,
        labels="cycle",
        solver="ancestral",
        options=dict(variance="learned"),
        calls=4000,  # with this grid: every step of the chain, the last one without noise
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="0.9999",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def conditional(config: ml_collections.ConfigDict) -> None:
    """The larger network, told the class."""
    config.data.update(
        source="tfds:imagenet2012", options=dict(size=64), conditional=True, num_classes=1000
    )
    config.model.update(ch=192, time_scale=1.0, null_label=False)
    # The scripts' weight without rescaling, 1 for one of the 4000 terms.
    config.loss.weighting_options.weight = 1 / 4000
    config.optimizer.learning_rate = 3e-4
    config.train.update(steps=250_000, batch_size=2048)
    config.sample.update(calls=250, labels="random")


def respaced(config: ml_collections.ConfigDict) -> None:
    """A tenth of a sample's cost and less, which learned variances make possible."""
    config.sample.calls = 100


VARIANTS = {"conditional": conditional, "respaced": respaced}
