"""NCSN++ under exploding variance on CelebA-HQ at 256x256, as released with the Score-SDE paper.

Paper     Song et al. 2021, arXiv:2011.13456; settings of the released code
Command   python main.py --config configs/celebahq256/score_sde.py --workdir runs/hq --mode train
Expected  the paper shows samples and gives no score
Hardware  TPU v3-8 (the released code's); 2.4 million steps
Data      TensorFlow Datasets, from images that are to be downloaded by hand (its page says how):
          pip install diffjax[tfds], and TensorFlow to build the set once
Variants  score_sde.py:ode      the same training, drawn in 50 calls of the probability-flow ODE
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

    config.network = "ncsnpp"  # 65,574,549 parameters, 128 of them fixed frequencies
    config.model = dict(
        ch=128,
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(16,),
        dropout=0.0,
        fir_kernel=(1, 3, 3, 1),
        progressive="output_skip",
        progressive_input="input_skip",
        time_embedding="log_fourier",
        dtype="float32",
    )

    config.schedule = dict(name="ve", options=dict(sigma_min=0.02, sigma_max=696.0))
    config.prediction = dict(parametrization="ve", sigma_data=0.5, learned_variance=False)
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
        sample_every=50_000,
    )
    config.parallel = dict(mode="sharding", fsdp=1)

    config.sampler = "solver"
    config.sample = dict(
        seed=0,
        number=50_000,
        batch_size=64,
        labels="cycle",
        solver="predictor_corrector",
        options=dict(predictor="reverse_diffusion", corrector="langevin", snr=0.075),
        calls=4001,  # two a step, and the step to the data
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.999",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def ode(config: ml_collections.ConfigDict) -> None:
    """Far fewer calls, by Heun's method."""
    config.sample.options = dict()
    config.sample.update(solver="heun", calls=51, grid="log_snr")


VARIANTS = {"ode": ode}
