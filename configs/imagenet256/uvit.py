"""U-ViT-L/2 on ImageNet at 256x256, on latents 32x32x4, as published.

Paper     Bao et al. 2023, arXiv:2209.12152, table 1
Before    python main.py --mode convert --checkpoint vae.safetensors --family vae --workdir runs/vae
          python main.py --mode encode --config configs/imagenet256/adm.py
          --workdir runs/latents256 --config.data.autoencoder=runs/vae
          of Stable Diffusion's autoencoder (its original decoder or ft-EMA, on which FID depends);
          84 GB on disk, mirror images included
Command   python main.py --config configs/imagenet256/uvit.py --workdir runs/uvit --mode train
Expected  FID 3.40 at guidance 1.4, the paper's w = 0.4 (released weights)
Hardware  8 NVIDIA A100, 100 h in half precision (paper); here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  uvit.py:huge          U-ViT-H/2, 500,832,016 parameters: FID 2.29 at guidance 1.4
          uvit.py:plain         drawn and scored without guidance; uvit.py:huge,plain is both
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="latents:runs/latents256",
        options=dict(),
        flip=False,  # the mirrored images were encoded
        conditional=True,
        autoencoder="runs/vae",  # what decodes the samples
        # Known, so that a dry run needs no data.
        shape=(32, 32, 4),
        num_classes=1000,
        scale=0.18215,
    )

    config.network = "uvit"  # 286,763,172 parameters
    config.model = dict(
        patch_size=2,
        width=1024,
        depth=20,
        num_heads=16,
        remat=True,
        dtype="bfloat16",
    )

    config.schedule = dict(name="vp_linear", options=dict(t_min=1e-4))
    config.prediction = dict(parametrization="eps", sigma_data=1.0, learned_variance=False)
    config.loss = dict(
        target="eps",
        weighting="",
        weighting_options=dict(),
        times="uniform",
        times_options=dict(),
        label_dropout=0.15,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(b1=0.99, b2=0.99, weight_decay=0.03),
        learning_rate=2e-4,
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
        batch_size=64,
        labels="random",
        solver="dpm_solver_3s",
        options=dict(),
        calls=49,  # 16 steps of order 3, and the step to the data; the paper takes 50
        grid="log_snr",
        denoise=True,
        guidance=1.4,  # the paper's weight is one less
        guidance_interval=(),
        threshold="",
        ema="0.9999",
    )
    config.evaluate = dict(number=50_000, guidance=1.4, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def huge(config: ml_collections.ConfigDict) -> None:
    """U-ViT-H/2: deeper, without the last convolution; on Stable Diffusion's chain, from step 1."""
    config.model.update(width=1152, depth=28, final_conv=False, time_offset=1.0)
    config.schedule = dict(name="discrete_scaled_linear", options=dict())
    config.loss.times = "discrete"
    config.loss.label_dropout = 0.1
    config.train.steps = 500_000


def plain(config: ml_collections.ConfigDict) -> None:
    """Drawn and scored without guidance."""
    config.sample.guidance = config.evaluate.guidance = 1.0


VARIANTS = {"huge": huge, "plain": plain}
