"""EDM on CIFAR-10: configuration F of the paper.

Paper     Karras et al. 2022, arXiv:2206.00364, tables 1, 2 and 6
Command   python main.py --config configs/cifar10/edm.py --workdir runs/edm --mode train
Expected  FID 1.97 as it stands, 1.79 conditional; plain 2.05 and 1.88; 35 network calls, the
          smallest of three evaluations (paper). Augmentation interpolates otherwise than the
          paper's, see diffjax.augmentation
Hardware  8 V100 GPUs, about two days (the released code's)
Data      TensorFlow Datasets: pip install diffjax[tfds], and TensorFlow to build the set once
Scores    --mode evaluate --config.evaluate.inception=PATH of the Inception weights
Variants  edm.py:conditional    told the class
          edm.py:plain          without augmentation but flips: configuration E
          edm.py:ncsnpp         NCSN++ in place of DDPM++ (conditional: 1.79)
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
        flip=False,
        conditional=False,
        # Known, so that a dry run needs no data.
        shape=(32, 32, 3),
        num_classes=10,
    )

    config.network = "ncsnpp"  # 55,733,891 parameters
    config.model = dict(
        ch=128,
        ch_mult=(2, 2, 2),
        num_res_blocks=4,
        attn_resolutions=(16,),
        dropout=0.13,
        time_embedding="positional",
        dtype="float32",
    )

    config.schedule = dict(name="edm", options=dict(t_min=0.002, t_max=80.0))
    config.prediction = dict(parametrization="edm", sigma_data=0.5, learned_variance=False)
    config.loss = dict(
        target="x0",
        weighting="edm",
        weighting_options=dict(),
        times="log_normal",
        times_options=dict(mean=-1.2, std=1.2),
        label_dropout=0.0,
        augmentation="edm",
        augmentation_options=dict(probability=0.12),
    )
    config.optimizer = dict(
        name="adam",
        options=dict(b1=0.9, b2=0.999),
        learning_rate=1e-3,
        warmup_steps=19_531,
        decay="constant",
        clip_norm=0.0,
        ema_rates=(0.9993,),
        ema_warmup=True,
    )
    config.train = dict(
        steps=390_625,
        batch_size=512,
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
        solver="heun",
        options=dict(),
        calls=35,  # 18 steps, the last one of Euler
        grid="karras",
        denoise=True,
        guidance=1.0,
        guidance_interval=(),
        threshold="",
        ema="0.9993",
    )
    config.evaluate = dict(number=50_000, guidance=1.0, seed=0)

    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def conditional(config: ml_collections.ConfigDict) -> None:
    """55,735,299 parameters."""
    config.data.conditional = True


def plain(config: ml_collections.ConfigDict) -> None:
    """55,732,739 parameters."""
    config.data.flip = True
    config.loss.augmentation = ""
    config.loss.augmentation_options = dict()


def ncsnpp(config: ml_collections.ConfigDict) -> None:
    """56,397,955 parameters, 128 of them fixed frequencies of the time."""
    config.model.update(
        fir_kernel=(1, 3, 3, 1), progressive_input="residual", time_embedding="fourier"
    )


VARIANTS = {"conditional": conditional, "plain": plain, "ncsnpp": ncsnpp}
