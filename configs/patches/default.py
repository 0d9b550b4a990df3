"""Colour patches of two photographs, 32x32 RGB: a trial of convolutions without a download.

Command   python main.py --config configs/patches/default.py --workdir runs/patches --mode train
Hardware  CPU or one accelerator
Variants  default.py:quick      a few steps of everything, to see it run
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="patches",
        options=dict(size=32),
        flip=True,
        conditional=True,  # on the photograph
    )

    config.network = "unet"
    config.model = dict(
        ch=32,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        dropout=0.0,
        dtype="float32",
    )

    config.schedule = dict(name="edm", options=dict())
    config.prediction = dict(parametrization="edm", sigma_data=0.5, learned_variance=False)
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
        learning_rate=1e-3,
        warmup_steps=200,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.999,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=3000,
        batch_size=64,
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
        seed=0,
        number=64,
        batch_size=64,
        labels="cycle",
        solver="heun",
        options=dict(),
        calls=35,
        grid="karras",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.999",
    )
    config.evaluate = dict(number=1000, guidance=1.0, seed=0, likelihood="", likelihood_number=256)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything, on 8x8 patches."""
    config.data.options.update(size=8, length=64)
    config.model.update(ch_mult=(1, 1), attn_resolutions=())
    config.train.update(steps=10, batch_size=16, log_every=5, checkpoint_every=10, sample_every=10)
    config.sample.update(number=16, batch_size=16, calls=5)
    config.evaluate.number = 64


VARIANTS = {"quick": quick}
