"""Denoising diffusion probabilistic models on LSUN at 256x256, as published.

Paper     Ho, Jain & Abbeel 2020, arXiv:2006.11239, table 3 (bedroom: the smaller network's row)
Command   python main.py --config configs/lsun256/ddpm.py --workdir runs/lsun_bedroom --mode train
Expected  FID 6.36 on bedroom, 7.89 on church, 19.75 on cat; 50,000 samples (paper)
Hardware  TPU v3-8 (paper)
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Variants  ddpm.py:church        LSUN church, mirrored too; likewise cat
          ddpm.py:fast          the same training, drawn in 20 network calls by DPM-Solver++
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:lsun/bedroom",
        options=dict(size=256),
        flip=False,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(256, 256, 3),
        num_classes=0,
    )

    config.network = "unet"  # 113,673,219 parameters
    config.model = dict(
        ch=128,
        ch_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attn_resolutions=(16,),
        dropout=0.0,
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
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=2e-5,
        warmup_steps=5000,
        decay="constant",
        clip_norm=1.0,
        ema_rates=(0.9999,),
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
        sample_every=50000,
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
        calls=1000,  # with this grid: every step of the chain, the last one without noise
        grid="uniform",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="static",
        ema="0.9999",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def cat(config: ml_collections.ConfigDict) -> None:
    """LSUN cat."""
    config.data.update(source="tfds:lsun/cat", flip=True)
    config.train.steps = 1_800_000


def church(config: ml_collections.ConfigDict) -> None:
    """LSUN church."""
    config.data.update(source="tfds:lsun/church_outdoor", flip=True)
    config.train.steps = 1_200_000


def fast(config: ml_collections.ConfigDict) -> None:
    """DPM-Solver++ on the same network."""
    config.sample.options = dict()
    config.sample.update(solver="dpm_solver_pp_2m", calls=20, grid="log_snr")


VARIANTS = {"cat": cat, "church": church, "fast": fast}
