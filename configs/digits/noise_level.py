"""A predictor of the noise in scikit-learn's digits, for Denoising MCMC.

Paper     Kim & Ye 2023, arXiv:2209.14593: a classifier of 1,000 levels; here of 200, on 8x8 images
Command   python main.py --config configs/digits/noise_level.py --workdir runs/noise --mode train
Then      python main.py --mode evaluate --workdir runs/noise     (its calibration)
Hardware  CPU
Variants  noise_level.py:quick      a few steps of everything, to see it run
          noise_level.py:conv       a small convolutional network instead of dense layers

The schedule must be that of the network whose chains it serves: it gives the range of levels.
Fields of drawing samples are there because every config has them; this system draws none.
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "noise_level"

    config.data = dict(source="digits", options=dict(), flip=False, conditional=False)

    config.network = "noise_level_mlp"  # or noise_level_conv
    config.model = dict(levels=200, width=256, depth=3, dtype="float32")

    config.schedule = dict(name="cosine", options=dict())  # that of configs/digits/default.py
    config.prediction = dict(parametrization="x0", sigma_data=0.5, learned_variance=False)
    config.loss = dict(
        target="x0",
        weighting="",
        weighting_options=dict(),
        times="stratified",
        times_options=dict(),
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(),
        learning_rate=2e-3,
        warmup_steps=50,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.99,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=3000,
        batch_size=512,
        microbatches=1,
        log_every=100,
        checkpoint_every=1000,
        keep_last=2,
        keep_every=0,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        number=100,
        batch_size=500,
        seed=0,
        labels="cycle",
        solver="dpm_solver_pp_2m",
        options=dict(),
        calls=20,
        grid="log_snr",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.99",
    )
    config.evaluate = dict(number=100, guidance=1.0, seed=0)
    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.train.update(steps=20, batch_size=64, log_every=5, checkpoint_every=10)
    if config.network == "noise_level_mlp":
        config.model.update(width=32, depth=1)


def conv(config: ml_collections.ConfigDict) -> None:
    """Two convolutions."""
    config.network = "noise_level_conv"
    config.model = dict(levels=200, channels=(16, 32), strides=(2, 2), dtype="float32")


VARIANTS = {"quick": quick, "conv": conv}
