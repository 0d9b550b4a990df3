"""Denoising diffusion probabilistic models at the size of scikit-learn's digits, 8x8 grey.

Paper     Ho, Jain & Abbeel 2020, arXiv:2006.11239: its CIFAR-10 recipe (configs/cifar10/ddpm.py)
          with a smaller network, a shorter run and no flips
Command   python main.py --config configs/digits/ddpm.py --workdir runs/digits_ddpm --mode train
Expected  Frechet distance 0.60 to the held-out half (0.43 for the training half), 1,500 samples
Hardware  2 CPU cores, shared with other work
Time      12 to 22 minutes to train, as long to score
Variants  ddpm.py:quick         a few steps of everything, to see it run
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(source="digits", options=dict(), flip=False, conditional=False)

    config.network = "unet"
    config.model = dict(
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        num_groups=8,
        dropout=0.1,
        dtype="float32",
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
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=1e-3,
        warmup_steps=100,
        decay="constant",
        clip_norm=1.0,
        ema_rates=(0.999,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=2000,
        batch_size=128,
        microbatches=1,
        log_every=100,
        checkpoint_every=500,
        keep_last=2,
        keep_every=0,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=100,
        batch_size=500,
        labels="cycle",
        solver="ancestral",
        options=dict(variance="large"),
        calls=1000,  # with this grid: every step of the chain, the last one without noise
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="0.999",
    )
    config.evaluate = dict(number=1500, guidance=1.0, seed=0, likelihood="", likelihood_number=256)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.schedule.options.steps = 50
    config.train.update(steps=10, batch_size=16, log_every=5, checkpoint_every=10)
    config.sample.update(number=20, batch_size=20, calls=50)
    config.evaluate.number = 100


VARIANTS = {"quick": quick}
