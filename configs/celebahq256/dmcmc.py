"""Denoising MCMC on CelebA-HQ-256: NCSN++ drawn from by chains, as published.

Paper     Kim & Ye 2023, arXiv:2209.14593, figure 4; network and training of Song et al. 2021
Command   python main.py --config configs/celebahq256/dmcmc.py --workdir runs/celebahq --mode train
Then      with a predictor (configs/digits/noise_level.py, on this data and schedule, network
          noise_level_conv with strides 4, 4, 4, 2) in runs/celebahq256_noise: --mode sample
Expected  FID 8.78 at 48 network evaluations, 10,000 samples (paper); here 47, as the published code
          calls the network once more at the end of KAR2. Its burn-in has 50 steps of eta 1.6 and 20
          of 0.8, this one 70 of 0.8
Hardware  one GPU (paper)
Data      TensorFlow Datasets, which has the images to be fetched by hand: celeb_a_hq
Variants  dmcmc.py:kar1         denoised by EDM's deterministic sampler, 23 evaluations
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:celeb_a_hq/256",
        options=dict(),
        flip=True,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(256, 256, 3),
        num_classes=0,
    )

    config.network = "ncsnpp"  # NCSN++, 65,574,549 parameters, 128 of them fixed
    config.model = dict(
        ch=128,
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(16,),
        dropout=0.0,
        fir_kernel=(1, 3, 3, 1),
        progressive="output_skip",
        progressive_input="input_skip",
        time_embedding="fourier",
        dtype="float32",
    )

    # Published for data in [0, 1], 0.01 to 348; these are in [-1, 1].
    config.schedule = dict(name="ve", options=dict(sigma_min=0.02, sigma_max=696.0))
    config.prediction = dict(parametrization="ve", sigma_data=0.5, learned_variance=False)
    config.loss = dict(
        target="eps",
        weighting="",
        weighting_options=dict(),
        times="uniform",
        times_options=dict(),
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=2e-4,
        warmup_steps=5000,
        decay="constant",
        clip_norm=1.0,
        ema_rates=(0.999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=2_400_000,
        batch_size=64,
        microbatches=1,
        log_every=100,
        checkpoint_every=10_000,
        keep_last=2,
        keep_every=100_000,
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "dmcmc"
    config.sample = dict(
        seed=0,
        number=10_000,
        batch_size=20,
        labels="cycle",
        solver="heun_stochastic",  # KAR2
        options=dict(gamma=0.41421356, noise_min=0.1, noise_max=2.0, inflation=1.007),
        calls=47,  # 10 of the chain, 36 of the solver, Tweedie's
        grid="karras",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="0.999",
    )
    config.dmcmc = dict(
        predictor="runs/celebahq256_noise",
        chains=20,
        n_skip=10,
        x_move="langevin",
        step=0.8,
        sigma_move="mode",
        select="least_noisy",
        start="kar2",
        start_calls=37,
        start_noise=0.5,
        burn_in=70,
    )
    config.evaluate = dict(number=10_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def kar1(config: ml_collections.ConfigDict) -> None:
    """EDM's deterministic sampler."""
    config.sample.options = dict()
    config.sample.update(solver="heun", calls=23)


VARIANTS = {"kar1": kar1}
