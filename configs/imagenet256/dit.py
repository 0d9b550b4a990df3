"""DiT-XL/2 on ImageNet at 256x256, on latents 32x32x4, as published.

Paper     Peebles & Xie 2022, arXiv:2212.09748, tables 1, 2 and 4
Before    python main.py --mode convert --checkpoint vae.safetensors --family vae --workdir runs/vae
          python main.py --mode encode --config configs/imagenet256/adm.py
          --workdir runs/latents256 --config.data.autoencoder=runs/vae
          of Stable Diffusion's autoencoder (the fine-tuned decoder ft-EMA, on which FID depends);
          84 GB on disk, mirror images included
Command   python main.py --config configs/imagenet256/dit.py --workdir runs/dit --mode train
Expected  FID 2.27 at guidance 1.5 of three channels; variant plain 9.62 (paper, 7M steps)
          after 400,000 steps without guidance: XL/2 19.5, large 23.3, base 43.5, small 68.4
Hardware  TPU v3-256, 5.7 steps/s (paper); here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  dit.py:large          DiT-L/2, 457,840,672 parameters
          dit.py:base           DiT-B/2, 130,315,808 parameters
          dit.py:small          DiT-S/2, 32,865,056 parameters
          dit.py:plain          drawn and scored without guidance; dit.py:small,plain is both
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="latents:runs/latents256",
        options=dict(),
        flip=False,  # the mirrored images were encoded
        conditional=True,
        autoencoder="runs/vae",  # what decodes the samples
        # Known, so that a dry run needs no data.
        shape=(32, 32, 4),
        num_classes=1000,
        scale=0.18215,
    )

    config.network = "dit"  # 674,834,720 parameters
    config.model = dict(
        patch_size=2,
        width=1152,
        depth=28,
        num_heads=16,
        remat=False,
        dtype="bfloat16",
    )

    config.schedule = dict(
        name="discrete_linear", options=dict(steps=1000, beta_min=1e-4, beta_max=0.02)
    )
    config.prediction = dict(parametrization="eps", sigma_data=1.0, learned_variance=True)
    config.loss = dict(
        target="hybrid",
        weighting="",
        weighting_options=dict(weight=1e-3),
        times="discrete",
        times_options=dict(),
        label_dropout=0.1,
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
        steps=7_000_000,
        batch_size=256,
        microbatches=1,
        log_every=100,
        checkpoint_every=10_000,
        keep_last=2,
        keep_every=100_000,
        sample_every=50_000,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=50_000,
        batch_size=64,
        labels="random",
        solver="ancestral",
        options=dict(variance="learned"),
        calls=250,
        grid="uniform",
        denoise=True,
        guidance=1.5,
        guidance_interval=(),
        guidance_channels=3,  # of 4: a slip of the released sampler, in its figures
        threshold="",
        ema="0.9999",
    )
    config.evaluate = dict(number=50_000, guidance=1.5, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def large(config: ml_collections.ConfigDict) -> None:
    """DiT-L/2, as long as in the paper's comparison of sizes."""
    config.model.update(width=1024, depth=24, num_heads=16)
    config.train.steps = 400_000


def base(config: ml_collections.ConfigDict) -> None:
    """DiT-B/2, likewise."""
    config.model.update(width=768, depth=12, num_heads=12)
    config.train.steps = 400_000


def small(config: ml_collections.ConfigDict) -> None:
    """DiT-S/2, likewise."""
    config.model.update(width=384, depth=12, num_heads=6)
    config.train.steps = 400_000


def plain(config: ml_collections.ConfigDict) -> None:
    """Drawn and scored without guidance."""
    config.sample.guidance = config.evaluate.guidance = 1.0


VARIANTS = {"large": large, "base": base, "small": small, "plain": plain}
