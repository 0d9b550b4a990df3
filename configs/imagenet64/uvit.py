"""U-ViT on ImageNet at 64x64, class-conditional, as published.

Paper     Bao et al. 2023, arXiv:2209.12152, table 1: U-ViT-M/4 and U-ViT-L/4
Command   python main.py --config configs/imagenet64/uvit.py --workdir runs/uvit --mode train
Expected  FID 5.85, variant large 4.26; 50,000 samples without guidance (paper)
Hardware  the paper gives none for this size; half precision, here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  uvit.py:large         U-ViT-L/4, 286,827,652 parameters
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:imagenet2012",
        options=dict(size=64),
        flip=True,
        conditional=True,
        # Known, so that a dry run needs no data.
        shape=(64, 64, 3),
        num_classes=1000,
    )

    config.network = "uvit"  # 130,940,292 parameters
    config.model = dict(
        patch_size=4,
        width=768,
        depth=16,
        num_heads=12,
        null_label=False,  # it never draws without a label
        remat=False,
        dtype="bfloat16",
    )

    config.schedule = dict(name="vp_linear", options=dict(t_min=1e-4))
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
        learning_rate=3e-4,
        warmup_steps=5000,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=300_000,
        batch_size=1024,
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
        solver="dpm_solver_3s",
        options=dict(),
        calls=49,  # 16 steps of order 3, and the step to the data; the paper takes 50
        grid="log_snr",
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


def large(config: ml_collections.ConfigDict) -> None:
    """Deeper and wider; blocks are recomputed in the backward pass."""
    config.model.update(width=1024, depth=20, num_heads=16, remat=True)


VARIANTS = {"large": large}
