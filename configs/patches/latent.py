"""Latent diffusion at a small size: DiT on the 8x8x4 latents of colour patches 32x32x3.

Paper     Peebles & Xie 2022, arXiv:2212.09748, and Bao et al. 2023, arXiv:2209.12152 (variant
          uvit): transformers on an autoencoder's latents
Before    the autoencoder is trained and the patches are encoded, as configs/patches/autoencoder.py
          says
Command   python main.py --config configs/patches/latent.py --workdir runs/latent --mode train
Hardware  2 CPU cores, shared with other work
Time      17 minutes to train
Result    Frechet distance 0.98 to held-out patches (0.50 for the training ones), 0.24 to training
          patches, 1,000 samples; 88.3 % show their class, of held-out patches 91.9 %
Variants  latent.py:quick       a few steps of everything, to see it run
          latent.py:uvit        U-ViT instead of DiT

Other places: --config.data.source=latents:DIR --config.data.autoencoder=WORKDIR.
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="latents:runs/latents",
        options=dict(),
        flip=False,  # the mirrored patches were encoded
        conditional=True,  # on the photograph
        autoencoder="runs/ae",  # what decodes the samples
        # What the autoencoder makes of the patches; the scale is found in the data.
        shape=(8, 8, 4),
        num_classes=2,
    )

    config.network = "dit"
    config.model = dict(patch_size=2, width=128, depth=4, num_heads=4, remat=False, dtype="float32")

    config.schedule = dict(name="edm", options=dict())
    # Latents are scaled to unit variance.
    config.prediction = dict(parametrization="edm", sigma_data=1.0, learned_variance=False)
    config.loss = dict(
        target="x0",
        weighting="edm",
        weighting_options=dict(),
        times="log_normal",
        times_options=dict(mean=-0.6, std=1.2),  # higher than of pixels, as the data are wider
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.99),
        learning_rate=1e-3,
        warmup_steps=100,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.999,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=3000,
        batch_size=128,
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
        guidance_channels=0,  # 3: guidance of the first three channels only, as in DiT's release
        threshold="",  # latents have no range
        ema="0.999",
    )
    config.evaluate = dict(number=1000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything, on the latents of autoencoder.py:quick."""
    config.data.update(shape=(4, 4, 2))
    config.model.update(width=16, depth=2, num_heads=2)
    config.train.update(steps=10, batch_size=16, log_every=5, checkpoint_every=10, sample_every=10)
    config.sample.update(number=16, batch_size=16, calls=5)
    config.evaluate.number = 64


def uvit(config: ml_collections.ConfigDict) -> None:
    """Long skips, and time and label as tokens."""
    config.network = "uvit"


VARIANTS = {"quick": quick, "uvit": uvit}
