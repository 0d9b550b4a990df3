"""DiT-XL/2 on ImageNet at 512x512, on latents 64x64x4, as published.

Paper     Peebles & Xie 2022, arXiv:2212.09748, table 3
Before    python main.py --mode convert --checkpoint vae.safetensors --family vae --workdir runs/vae
          python main.py --mode encode --config configs/imagenet512/adm.py
          --workdir runs/latents512 --config.data.autoencoder=runs/vae
          of Stable Diffusion's autoencoder (the fine-tuned decoder ft-EMA, on which FID depends);
          336 GB on disk, mirror images included
Command   python main.py --config configs/imagenet512/dit.py --workdir runs/dit512 --mode train
Expected  FID 3.04 at guidance 1.5 of three channels; variant plain 12.03 (paper)
Hardware  TPU v3 pods (paper); here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  dit.py:plain          drawn and scored without guidance
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="latents:runs/latents512",
        options=dict(),
        flip=False,  # the mirrored images were encoded
        conditional=True,
        autoencoder="runs/vae",  # what decodes the samples
        # Known, so that a dry run needs no data.
        shape=(64, 64, 4),
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
        steps=3_000_000,
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


def plain(config: ml_collections.ConfigDict) -> None:
    """Drawn and scored without guidance."""
    config.sample.guidance = config.evaluate.guidance = 1.0


VARIANTS = {"plain": plain}
