"""The config of the tests: digits, with every field, whatever configs/ is tuned to."""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="digits",
        options=dict(),
        flip=False,
        conditional=True,
    )

    config.network = "mlp"
    config.model = dict(width=512, depth=4, dropout=0.1, dtype="float32")

    config.schedule = dict(name="edm", options=dict())
    config.prediction = dict(
        parametrization="edm",
        sigma_data=0.5,
        learned_variance=False,
    )
    config.loss = dict(
        target="x0",
        weighting="edm",
        weighting_options=dict(),
        times="log_normal",
        times_options=dict(mean=-1.2, std=1.2),
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.99),
        learning_rate=2e-3,
        warmup_steps=100,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.99, 0.999),
        ema_warmup=True,
    )
    config.train = dict(
        steps=1500,
        batch_size=256,
        microbatches=1,
        log_every=50,
        checkpoint_every=500,
        keep_last=2,
        keep_every=0,
        sample_every=500,
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
        grid="karras",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.999",
    )
    config.evaluate = dict(
        number=1500,
        guidance=1.0,
        seed=0,
        likelihood="",
        likelihood_number=256,
    )
    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.train.update(steps=20, batch_size=64, log_every=5, checkpoint_every=10, sample_every=10)
    config.sample.update(number=20, batch_size=20, calls=6)
    config.evaluate.number = 100
    if config.network == "mlp":
        config.model.update(width=64, depth=2)


def unet(config: ml_collections.ConfigDict) -> None:
    """Convolutions and attention at 4x4, 0.7 million parameters."""
    config.network = "unet"
    config.model = dict(
        ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.1, dtype="float32"
    )


def dit(config: ml_collections.ConfigDict) -> None:
    """A transformer on 16 patches."""
    config.network = "dit"
    config.model = dict(patch_size=2, width=128, depth=4, num_heads=4, remat=False, dtype="float32")


VARIANTS = {"quick": quick, "unet": unet, "dit": dit}
