"""ADM's upsampler on ImageNet, 64x64 to 256x256, class-conditional, as published.

Paper     Dhariwal & Nichol 2021, arXiv:2105.05233, table 5
Command   python main.py --config configs/imagenet256/upsampler.py --workdir runs/up256 --mode train
          python main.py --mode sample --workdir runs/up256
          --config.sample.low_res=FILE enlarges samples of configs/imagenet64/adm.py's run,
          the .npz that its --mode sample writes, each for its class
Expected  FID 7.49 on samples of ADM at 64x64, 3.94 on guided ones (paper)
Hardware  NVIDIA V100 GPUs (paper), in half precision; here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Variants  upsampler.py:ddim     the same training, drawn in 25 steps of DDIM
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:imagenet2012",
        options=dict(size=256),
        flip=True,
        conditional=True,
        # Known, so that a dry run needs no data.
        shape=(256, 256, 3),
        low_res=64,
        num_classes=1000,
    )

    config.network = "adm_super_resolution"  # 311,795,910 parameters
    config.model = dict(
        ch=192,
        ch_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attn_resolutions=(32, 16, 8),
        num_heads=4,
        dropout=0.0,
        null_label=False,
        remat=False,
        dtype="bfloat16",
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
        label_dropout=0.0,
    )
    config.optimizer = dict(
        name="adamw",
        options=dict(b1=0.9, b2=0.999, weight_decay=0.0),
        learning_rate=1e-4,
        warmup_steps=0,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=500_000,
        batch_size=256,
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
        solver="ancestral",
        options=dict(variance="learned"),
        calls=250,
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


def ddim(config: ml_collections.ConfigDict) -> None:
    """DDIM in the 25 steps of the paper's fast samples."""
    config.sample.options = dict()
    config.sample.update(solver="ddim", calls=25)


VARIANTS = {"ddim": ddim}
