"""U-ViT on CelebA at 64x64, with the published settings.

Paper     Bao et al. 2023, arXiv:2209.12152, table 1: U-ViT-S/4
Command   python main.py --config configs/celeba64/uvit.py --workdir runs/uvit --mode train
Expected  FID 2.87 (paper), of faces cut closer than here: the paper takes the central 128x128
          pixels, this config the largest square, so that the figures do not compare
Hardware  4 RTX 2080 Ti, 24 hours (paper), in half precision; here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  uvit.py:fast          the same training, drawn in 20 network calls by DPM-Solver++
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:celeb_a",
        options=dict(size=64),
        flip=True,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(64, 64, 3),
        num_classes=0,
    )

    config.network = "uvit"  # 44,292,228 parameters
    config.model = dict(
        patch_size=4,
        width=512,
        depth=12,
        num_heads=8,
        remat=False,
        dtype="bfloat16",
    )

    config.schedule = dict(name="vp_linear", options=dict())
    config.prediction = dict(parametrization="eps", sigma_data=0.5, learned_variance=False)
    config.loss = dict(
        target="eps",
        weighting="",
        weighting_options=dict(),
        times="uniform",
        times_options=dict(),
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(b1=0.99, b2=0.99, weight_decay=0.03),
        learning_rate=2e-4,
        warmup_steps=5000,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=500_000,
        batch_size=128,
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
        batch_size=256,
        labels="cycle",
        solver="euler_maruyama",
        options=dict(),
        calls=1000,  # the last one without noise
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.9999",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def fast(config: ml_collections.ConfigDict) -> None:
    """DPM-Solver++ on the same network."""
    config.sample.update(solver="dpm_solver_pp_2m", calls=20, grid="log_snr")


VARIANTS = {"fast": fast}
