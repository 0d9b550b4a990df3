"""The autoencoder of a small latent model: colour patches 32x32x3 as latents 8x8x4.

Paper     Rombach et al. 2022, arXiv:2112.10752: the KL autoencoder, without its perceptual and
          adversarial losses and at a hundredth of its size
Command   python main.py --config configs/patches/autoencoder.py --workdir runs/ae --mode train
Then      python main.py --mode evaluate --workdir runs/ae     (how well it reconstructs)
          python main.py --mode encode --config configs/patches/default.py --workdir runs/latents
          --config.data.autoencoder=runs/ae     (for configs/patches/latent.py)
Hardware  CPU
Result    29.2 dB on held-out patches; their latents have standard deviation 2.48 (seed 0)
Variants  autoencoder.py:quick      a few steps of everything, to see it run

Fields of drawing samples are there because every config has them; this system draws none.
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "autoencoder"

    config.data = dict(source="patches", options=dict(size=32), flip=True, conditional=False)

    config.network = "autoencoder_kl"
    config.model = dict(
        widths=(16, 32, 32),  # each level halves the resolution of the one before
        num_res_blocks=1,
        latent_channels=4,
        num_groups=8,
        dtype="float32",
    )

    config.loss = dict(
        target="l1",  # or l2
        weighting="",
        weighting_options=dict(kl=1e-3),
        times="uniform",
        times_options=dict(),
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.99),
        learning_rate=2e-3,
        warmup_steps=50,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.99,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=600,
        batch_size=32,
        microbatches=1,
        log_every=50,
        checkpoint_every=200,
        keep_last=1,
        keep_every=0,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.schedule = dict(name="edm", options=dict())
    config.prediction = dict(parametrization="edm", sigma_data=0.5, learned_variance=False)
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
        ema="0.99",
    )
    config.evaluate = dict(number=1000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything, on 8x8 patches."""
    config.data.options.update(size=8, length=64)
    config.model.update(widths=(8, 8), latent_channels=2)
    config.train.update(steps=10, batch_size=16, log_every=5, checkpoint_every=10)


VARIANTS = {"quick": quick}
