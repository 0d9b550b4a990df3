"""An upsampler of scikit-learn's digits, 4x4 to 8x8 grey: ADM's super-resolution network, small.

Paper     Dhariwal & Nichol 2021, arXiv:2105.05233: the recipe of configs/imagenet256/upsampler.py
          with a smaller network and a shorter run
Command   python main.py --config configs/digits/upsampler.py --workdir runs/digits_up --mode train
          python main.py --mode sample --workdir runs/digits_up --config.sample.low_res=test
          enlarges digits held out; a .npz of samples 4x4 would do in place of 'test'
Expected  98.8 % of enlarged held-out digits keep their label, as of real ones (docs/upsampling.md)
Hardware  2 CPU cores
Time      10 minutes to train on a busy machine
Variants  upsampler.py:quick    a few steps of everything, to see it run
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(source="digits", options=dict(), flip=False, conditional=True, low_res=4)

    config.network = "adm_super_resolution"
    config.model = dict(
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        num_heads=2,
        num_groups=8,
        dropout=0.1,
        null_label=True,
        dtype="float32",
    )

    config.schedule = dict(
        name="discrete_linear", options=dict(steps=1000, beta_min=1e-4, beta_max=0.02)
    )
    config.prediction = dict(parametrization="eps", sigma_data=0.5, learned_variance=True)
    config.loss = dict(
        target="hybrid",
        weighting="",
        weighting_options=dict(weight=1e-3),
        times="discrete",
        times_options=dict(),
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=1e-3,
        warmup_steps=100,
        decay="cosine",
        clip_norm=1.0,
        ema_rates=(0.999,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=1500,
        batch_size=128,
        microbatches=1,
        log_every=100,
        checkpoint_every=500,
        keep_last=2,
        keep_every=0,
        sample_every=500,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=100,
        batch_size=300,
        labels="cycle",
        low_res="",
        solver="ancestral",
        options=dict(variance="learned"),
        calls=100,
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="0.999",
    )
    config.evaluate = dict(number=800, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.schedule.options.steps = 50
    config.train.update(steps=10, batch_size=16, log_every=5, checkpoint_every=10, sample_every=10)
    config.sample.update(number=20, batch_size=20, calls=10)
    config.evaluate.number = 100


VARIANTS = {"quick": quick}
