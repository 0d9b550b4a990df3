"""A published checkpoint as a run: what ``--mode convert`` does.

The workdir then holds the weights as those of step 0, and a config with the forward process and the
sampler that the authors used, so that it can be drawn from, scored and trained like any other run.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from diffjax import components, configuration, convert
from diffjax import state as states
from diffjax.checkpoint import DIRECTORY, Checkpoints
from diffjax.experiment import build
from diffjax.logging import say
from diffjax.models import ADMSuperResolution
from diffjax.optimizers import optimizer
from diffjax.state import TrainState
from diffjax.workdir import CONFIG_FILE, check_workdir, save_config

__all__ = ["run"]

# What a network can be part of.
SYSTEMS = {
    "diffusion": components.NETWORKS,
    "noisy_classifier": components.CLASSIFIERS,
    "autoencoder": components.AUTOENCODERS,
}
# Factor on the latents of every published network of latents that is known here.
LATENT_SCALE = 0.18215
# Attributes of a module that a config says elsewhere, or not at all.
ELSEWHERE = ("name", "parent", "num_classes", "learned_variance")


def run(
    checkpoint: str | os.PathLike,
    family: str,
    workdir: str | os.PathLike,
    *,
    architecture: str = "",
    config: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Writes a workdir with the weights of a checkpoint. Everything is checked before.

    Args:
        checkpoint: A file that ``convert.load`` reads.
        family: One of ``convert.FAMILIES``.
        workdir: Where to; it must hold no run.
        architecture: Arguments of the official constructor that the tensors do not tell, as
            ``convert.parse`` reads them.
        config: A config file whose data, process and sampler are to be used, instead of those that
            go with the checkpoint.
        overrides: Command-line arguments ``--config.name=value``.

    Raises:
        ValueError: The checkpoint cannot be read, or does not fit family, architecture or config;
            or the workdir holds a run.
    """
    for taken in (CONFIG_FILE, DIRECTORY):
        if pathlib.Path(workdir, taken).exists():
            raise ValueError(f"workdir {workdir} holds a run: give another --workdir")
    given = convert.parse(architecture)
    tensors = convert.load(checkpoint)
    with _about(checkpoint):
        published = convert.published(family, **convert.infer(family, tensors, **given))
        convert.check(published, tensors)
        published = published._replace(module=published.in_runs or published.module)
        made = _config(published, config)
    made = configuration.override(made, overrides)
    check_workdir(made, workdir)
    experiment = build(made, open_data=bool(made.data.source))
    _check_config(experiment.config, experiment.num_classes, published)
    with _about(checkpoint):
        variables = convert.from_tensors(published, tensors)
    # Whole, with an optimiser that has seen nothing: training may go on from here.
    state = states.create(
        jax.random.key(experiment.config.seed),
        variables["params"],
        optimizer(experiment.config),
        experiment.config.optimizer.ema_rates,
    )
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state)
    save_config(experiment.config, workdir)
    say(_told(family, published.module, experiment.shape, state, workdir))


def _told(family: str, module: nn.Module, shape: Sequence[int], state: TrainState, workdir) -> str:
    """What was converted, how it was understood, and what can be done with it."""
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    classes = getattr(module, "num_classes", 0)
    title = f"converted {size:,} parameters of family {family}: {type(module).__name__} for "
    title += "x".join(map(str, shape)) + (f", {classes} classes" if classes else "")
    defaults = _options(type(module)())
    attributes = [f"  {k} = {v}" for k, v in _options(module).items() if v != defaults.get(k)]
    use = f"python main.py --mode sample --workdir {workdir}"
    if shape[-1] not in (1, 3):
        use += " --config.data.autoencoder=WORKDIR, the run of what decodes its latents"
    if type(module) in components.AUTOENCODERS.values():
        use = f"--config.data.autoencoder={workdir} where latents are encoded or drawn"
    if type(module) is ADMSuperResolution:
        use += " --config.sample.low_res=FILE, samples of another run"
    if type(module) in components.CLASSIFIERS.values():
        use = f"--config.sample.classifier={workdir} where a run is drawn from"
    return "\n".join([title, *attributes, f"use it by: {use}"])


@contextlib.contextmanager
def _about(checkpoint: str | os.PathLike) -> Iterator[None]:
    """Puts the file before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error


def _config(
    published: convert.Published, file: str | os.PathLike | None
) -> ml_collections.ConfigDict:
    """The config of a published network: that of the file, or the authors' settings."""
    module = published.module
    names = {
        kind: (system, name) for system, kinds in SYSTEMS.items() for name, kind in kinds.items()
    }
    if type(module) not in names:
        raise ValueError(
            f"a workdir is drawn from, but {type(module).__name__} draws no images by itself: load "
            "it in Python with diffjax.convert.from_torch"
        )
    system, network = names[type(module)]
    _, height, width, channels = published.input_shape
    if file is None:
        if "schedule.name" not in published.settings:
            raise ValueError(
                "it was trained on a process that no config can name: load it in Python with "
                "diffjax.convert.from_torch"
            )
        config = _defaults()
        for field, value in published.settings.items():
            _set(config, field, value)
        config.prediction.learned_variance = getattr(module, "learned_variance", False)
    else:
        config = configuration.load(file)
    classes = getattr(module, "num_classes", 0)
    config.system, config.network, config.model = system, network, _options(module)
    config.data.update(shape=(height, width, channels), conditional=classes > 0)
    if channels not in (1, 3):
        config.data.scale = config.data.get("scale", LATENT_SCALE)
    if classes:
        config.data.num_classes = classes
    elif "num_classes" in config.data:
        del config.data.num_classes
    return config


def _options(module: nn.Module) -> dict[str, Any]:
    """A module's attributes as a config writes them."""
    types = {kind: name for name, kind in components.DTYPES.items()}
    attributes = {
        field: getattr(module, field)
        for field in module.__dataclass_fields__
        if field not in ELSEWHERE
    }
    # None is what an attribute is when it is left out.
    options = {field: value for field, value in attributes.items() if value is not None}
    return options | {"dtype": types[options["dtype"]]}


def _check_config(config: ml_collections.ConfigDict, classes: int, published) -> None:
    """Raises a ValueError if the config describes another network than the checkpoint's."""
    if config.system == "autoencoder":
        described = components.autoencoder_network(config)
    else:
        judges = config.system == "noisy_classifier"
        make = components.classifier_network if judges else components.network
        described = make(config, classes)
    if described != published.module or tuple(config.data.shape) != published.input_shape[1:]:
        fields = {
            field: (getattr(published.module, field, None), getattr(described, field, None))
            for field in published.module.__dataclass_fields__
        }
        shapes = published.input_shape[1:], tuple(config.data.shape)
        differing = [
            f"{field} is {theirs!r}, not {ours!r}"
            for field, (theirs, ours) in ({"the images' shape": shapes} | fields).items()
            if theirs != ours
        ]
        raise ValueError(f"the checkpoint does not fit the config: {'; '.join(differing[:3])}")


def _set(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    section, _, name = field.partition(".")
    config[section][name] = value


def _defaults() -> ml_collections.ConfigDict:
    """What no checkpoint says."""
    values: Mapping[str, Any] = dict(
        seed=0,
        system="diffusion",
        # Drawing needs no data; --config.data.source says which ones to score against.
        data=dict(source="", options={}, flip=False),
        network="",
        model={},
        schedule=dict(name="", options={}),
        prediction=dict(parametrization="eps", sigma_data=0.5, learned_variance=False),
        loss=dict(
            target="eps",
            weighting="",
            weighting_options={},
            times="uniform",
            times_options={},
            label_dropout=0.0,
        ),
        optimizer=dict(
            name="adam",
            options={},
            learning_rate=1e-4,
            warmup_steps=0,
            decay="constant",
            clip_norm=0.0,
            ema_rates=(),
            ema_warmup=False,
        ),
        train=dict(
            steps=1,
            batch_size=128,
            microbatches=1,
            log_every=100,
            checkpoint_every=1000,
            keep_last=2,
            keep_every=0,
            sample_every=0,
        ),
        parallel=dict(mode="sharding", fsdp=1),
        sampler="solver",
        sample=dict(
            seed=0,
            number=64,
            batch_size=64,
            labels="cycle",
            solver="ancestral",
            options={},
            calls=250,
            grid="uniform",
            denoise=True,
            guidance=1.0,
            guidance_interval=(),
            threshold="",
            ema="",
        ),
        evaluate=dict(number=10_000, guidance=1.0, seed=0),
    )
    return ml_collections.ConfigDict(values)
