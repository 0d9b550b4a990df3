"""ADM on ImageNet at 64x64, class-conditional, as published.

Paper     Dhariwal & Nichol 2021, arXiv:2105.05233, tables 5 and 11
Command   python main.py --config configs/imagenet64/adm.py --workdir runs/adm --mode train
          python main.py --mode sample --workdir runs/adm --config.sample.guidance=2
          --config.sample.classifier=runs/c64 draws guided by classifier.py's run
          (guidance is 1 + the paper's scale, as the network itself knows the class)
Expected  FID 2.07, sFID 4.29, precision 0.74, recall 0.63 (paper, table 5)
Hardware  NVIDIA V100 GPUs (paper), in half precision; here bfloat16
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Variants  adm.py:ddim           the same training, drawn in 25 steps of DDIM
"""

import ml_collections


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    """The experiment; ``variants`` is what follows the colon on the command line."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.system = "diffusion"

    config.data = dict(
        source="tfds:imagenet2012",
        options=dict(size=64),
        flip=True,
        conditional=True,
        # Known, so that a dry run needs no data.
        shape=(64, 64, 3),
        num_classes=1000,
    )

    config.network = "adm"  # 295,904,454 parameters
    config.model = dict(
        ch=192,
        ch_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attn_resolutions=(32, 16, 8),
        head_channels=64,
        new_attention_order=True,
        dropout=0.1,
        null_label=False,
        remat=False,
        dtype="bfloat16",
    )

    config.schedule = dict(name="discrete_cosine", options=dict(steps=1000))
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
        learning_rate=3e-4,
        warmup_steps=0,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9999,),
        ema_warmup=False,
    )
    config.train = dict(
        steps=540_000,
        batch_size=2048,
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
