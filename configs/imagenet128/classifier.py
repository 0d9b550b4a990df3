"""The classifier of noisy images that guides ADM on ImageNet at 128x128, as published.

Paper     Dhariwal & Nichol 2021, arXiv:2105.05233, section 4 and table 12
Command   python main.py --config configs/imagenet128/classifier.py --workdir runs/c128 --mode train
Expected  what it does for the samples: see adm.py
Hardware  NVIDIA V100 GPUs (paper), in half precision; here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
          The paper crops at random; here the centre is cropped, and mirrored
Variants  classifier.py:small_batch  in 8 microbatches
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "noisy_classifier"

    config.data = dict(
        source="tfds:imagenet2012",
        options=dict(size=128),
        flip=True,
        conditional=True,
        # Known, so that a dry run needs no data.
        shape=(128, 128, 3),
        num_classes=1000,
    )

    config.network = "adm_classifier"  # 42,568,040 parameters
    config.model = dict(
        ch=128,
        ch_mult=(1, 1, 2, 3, 4),
        num_res_blocks=2,
        attn_resolutions=(32, 16, 8),
        head_channels=64,
        pool="attention",
        dtype="bfloat16",
    )

    config.schedule = dict(
        name="discrete_linear", options=dict(steps=1000, beta_min=1e-4, beta_max=0.02)
    )
    config.prediction = dict(parametrization="eps", sigma_data=0.5, learned_variance=False)
    config.loss = dict(
        target="eps",
        weighting="",
        weighting_options=dict(),
        times="discrete",
        times_options=dict(),
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(b1=0.9, b2=0.999, weight_decay=0.05),
        learning_rate=3e-4,
        warmup_steps=0,
        decay="linear",
        clip_norm=0.0,
        ema_rates=(),
        ema_warmup=False,
    )
    config.train = dict(
        steps=300_000,
        batch_size=256,
        microbatches=1,
        log_every=100,
        checkpoint_every=10_000,
        keep_last=2,
        keep_every=100_000,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=50_000,
        batch_size=64,
        labels="cycle",
        solver="ancestral",
        options=dict(variance="small"),
        calls=250,
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def small_batch(config: ml_collections.ConfigDict) -> None:
    """What fits one device with the published update."""
    config.train.microbatches = 8


VARIANTS = {"small_batch": small_batch}
