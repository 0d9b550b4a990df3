"""Denoising MCMC on digits: the MLP of configs/digits/default.py:mlp, drawn from by chains.

Paper     Kim & Ye 2023, arXiv:2209.14593
Command   python main.py --config configs/digits/dmcmc.py --workdir runs/mlp --mode sample
Before    --mode train with this file or default.py:mlp, which train alike; for dmcmc.py:paper
          the predictor of noise levels too:
          python main.py --config configs/digits/noise_level.py --workdir runs/noise --mode train
Hardware  2 CPU cores
Result    docs/denoising_mcmc.md
Variants  dmcmc.py:quick        a few steps of everything, and no predictor
          dmcmc.py:paper        the chain of the paper, unadjusted Langevin
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="digits",  # digits, patches, folder:PATH, arrays:PATH.npz, tfds:NAME
        options=dict(),  # the source's own, e.g. size, data_dir
        flip=False,
        conditional=True,
    )

    config.network = "mlp"  # that of docs/denoising_mcmc.md
    config.model = dict(width=512, depth=4, layer_norm=True, dropout=0.6, dtype="float32")

    config.schedule = dict(name="cosine", options=dict())
    # x0, not noise: most pixels are exactly black, and a small network cannot find faint noise in
    # them exactly enough; what it leaves is clipped in the image and biases it.
    config.prediction = dict(
        parametrization="x0",  # eps, x0, v, score, flow, edm
        sigma_data=0.5,  # for edm
        learned_variance=False,
    )
    config.loss = dict(
        target="x0",
        weighting="min_snr",  # '' for the plain target; or edm, min_snr, sigmoid, snr, v
        weighting_options=dict(gamma=20.0),  # the weighting's own
        times="stratified",  # uniform, stratified, discrete, log_normal
        times_options=dict(),  # the times' own, e.g. mean and std of log_normal
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",  # any optimiser of optax by name
        options=dict(b1=0.9, b2=0.99),
        learning_rate=2e-3,
        warmup_steps=100,
        decay="cosine",  # constant, linear, cosine
        clip_norm=1.0,
        ema_rates=(0.99, 0.999),
        ema_warmup=True,
    )
    config.train = dict(
        steps=1500,
        batch_size=256,
        microbatches=1,
        log_every=50,
        checkpoint_every=500,
        keep_last=2,
        keep_every=0,  # also keep every n-th step for good; 0 for none
        sample_every=0,
    )
    config.parallel = dict(mode="sharding", fsdp=1)  # mode: sharding or pmap

    config.sampler = "dmcmc"
    config.sample = dict(
        number=100,
        batch_size=500,
        seed=0,
        labels="cycle",  # cycle: 0, 1, 2, ... in turn; random; or a list '3,3,7'
        solver="dpm_solver_pp_2m",
        options=dict(),  # the solver's own, e.g. eta
        calls=10,  # network calls a sample, those of the chain among them
        grid="log_snr",  # uniform, quadratic, log_snr, karras
        denoise=True,
        guidance=1.0,  # other scales cost two network evaluations a call
        guidance_interval=(),  # (t_low, t_high), or () for everywhere
        threshold="",  # '', static or dynamic
        ema="0.999",
    )
    config.dmcmc = dict(
        chains=100,  # a multiple of the classes
        n_skip=1,  # steps of the chain a sample
        # Levels are in units of the range of the data, whatever that is.
        x_move="excursion",  # up to the level top at no cost, down in so many calls
        top=4.0,
        calls=4,
        sigma_move="known",  # the level that they end at
        lowest=0.2,
        highest=0.2,
        select="last",
        start="dpm_solver_pp",
        start_calls=20,
        start_noise=0.2,
        burn_in=5,
    )
    config.evaluate = dict(
        number=1500,
        guidance=1.0,  # the distances are those of plain samples; their labels, of both
        seed=0,
    )
    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """A few steps of everything."""
    config.train.update(steps=20, batch_size=64, log_every=5, checkpoint_every=10, sample_every=10)
    config.sample.update(number=20, batch_size=20, calls=8)
    config.dmcmc = dict(sigma_move="langevin", step=0.3, n_skip=1, chains=20, burn_in=1)
    config.evaluate.number = 100
    config.model.update(width=64, depth=2)


def paper(config: ml_collections.ConfigDict) -> None:
    """Unadjusted Langevin, the most likely level."""
    config.dmcmc = dict(predictor="runs/noise", n_skip=2, x_move="langevin", step=0.5)


VARIANTS = {"quick": quick, "paper": paper}
