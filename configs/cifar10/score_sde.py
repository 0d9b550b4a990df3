"""Score-based models of stochastic differential equations on CIFAR-10, as published.

Paper     Song et al. 2021, arXiv:2011.13456, tables 2 and 3
Command   python main.py --config configs/cifar10/score_sde.py --workdir runs/score_sde --mode train
Expected  50,000 samples against the training set, best checkpoint, FID and inception score (paper):
          as it stands (VP, DDPM++)    2.55, 9.58;    deep    2.41, 9.68
          subvp                        2.61, 9.56;    deep    2.41, 9.57
          ve (NCSN++)                  2.38, 9.83;    deep    2.20, 9.89
Hardware  TPU v3-8 (the released code's); 1.3 million steps, deep ones 0.95 million
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  score_sde.py:subvp    the sub-variance-preserving process
          score_sde.py:ve       the variance-exploding process and NCSN++
          score_sde.py:deep     twice the blocks; after another, as in ve,deep
          score_sde.py:ode      the same training, drawn in 50 calls of the probability-flow ODE
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:cifar10",
        options=dict(),
        flip=True,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(32, 32, 3),
        num_classes=10,
    )

    config.network = "ncsnpp"  # 61,804,419 parameters
    config.model = dict(
        ch=128,
        ch_mult=(1, 2, 2, 2),
        num_res_blocks=4,
        attn_resolutions=(16,),
        dropout=0.1,
        time_embedding="positional",
        dtype="float32",
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
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=2e-4,
        warmup_steps=5000,
        decay="constant",
        clip_norm=1.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=1_300_000,
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


def subvp(config: ml_collections.ConfigDict) -> None:
    """Smaller variances than VP's, at the same signal."""
    config.schedule.name = "subvp"


def ve(config: ml_collections.ConfigDict) -> None:
    """NCSN++ under exploding variance.

    The paper's images are in [0, 1], with noise from 0.01 to 50; ours in [-1, 1] take twice that.
    Its loss is a sum over pixels: Adam sees no difference, clipping does.
    """
    config.model.update(  # 62,758,915 parameters, 128 of them fixed frequencies
        fir_kernel=(1, 3, 3, 1), progressive_input="residual", time_embedding="log_fourier"
    )
    config.schedule.update(name="ve", options=dict(sigma_min=0.02, sigma_max=100.0))
    config.prediction.parametrization = "ve"
    config.optimizer.ema_rates = (0.999,)
    config.sample.update(
        solver="predictor_corrector",
        options=dict(predictor="reverse_diffusion", corrector="langevin", snr=0.16),
        calls=2001,  # two a step, and the step to the data
        ema="0.999",
    )


def deep(config: ml_collections.ConfigDict) -> None:
    """106,632,579 parameters; with ve 107,587,075 parameters."""
    config.model.num_res_blocks = 8
    config.train.steps = 950_000


def ode(config: ml_collections.ConfigDict) -> None:
    """Fewer calls than the paper's black-box solver takes, by Heun's method."""
    config.sample.options = dict()
    config.sample.update(solver="heun", calls=51, grid="log_snr")


VARIANTS = {"subvp": subvp, "ve": ve, "deep": deep, "ode": ode}
