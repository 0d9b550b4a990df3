"""The classifier that guides: digits at every noise level, for classifier guidance of any run.

Paper     Dhariwal & Nichol 2021, arXiv:2105.05233, section 4: ADM's classifier with its attention
          pool, at the size of 8x8 images (378,186 parameters), cross-entropy on noisy images
Command   python main.py --config configs/digits/guidance.py --workdir runs/judge --mode train
          python main.py --mode sample --workdir runs/digits --config.sample.classifier=runs/judge
          --config.sample.guidance=3 draws from another run with it;
          python benchmarks/guidance.py draws the whole trade-off
Hardware  2 CPU cores
Variants  guidance.py:quick     a few steps of everything, to see it run
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "noisy_classifier"

    config.data = dict(source="digits", options=dict(), flip=False, conditional=True)

    config.network = "adm_classifier"
    config.model = dict(
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        head_channels=32,
        pool="attention",
        # As in the digits run, against learning 898 images by heart.
        dropout=0.3,
        dtype="float32",
    )

    # That of configs/digits/default.py; of another schedule only the noise levels would differ.
    config.schedule = dict(name="cosine", options=dict())
    config.prediction = dict(parametrization="eps", sigma_data=0.5, learned_variance=False)
    config.loss = dict(  # of which a classifier has the times
        target="eps",
        weighting="",
        weighting_options=dict(),
        times="stratified",
        times_options=dict(),
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(weight_decay=0.05),
        learning_rate=1e-3,
        warmup_steps=50,
        decay="linear",
        clip_norm=0.0,
        ema_rates=(),
        ema_warmup=True,
    )
    config.train = dict(
        steps=600,
        batch_size=128,
        microbatches=1,
        log_every=50,
        checkpoint_every=300,
        keep_last=1,
        keep_every=0,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(  # it draws nothing; this is here for what reads any config
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
        ema="",
    )
    config.evaluate = dict(number=1500, guidance=1.0, seed=0)
    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.train.update(steps=20, batch_size=64, log_every=5, checkpoint_every=10)


VARIANTS = {"quick": quick}
