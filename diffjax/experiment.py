"""From a config to an experiment: everything that the config names, made and checked.

    experiment = build(configuration.load("configs/digits/default.py:quick"))

Whatever a config can get wrong is found here, before anything is trained or written.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffjax import components, data, latents, mcmc, parallel, systems, upsampling
from diffjax.components import EMPIRICAL, sample_labels
from diffjax.configuration import validate
from diffjax.data import Source
from diffjax.data.base import check_labels
from diffjax.optimizers import optimizer
from diffjax.options import about, choose
from diffjax.schedules import Schedule
from diffjax.solvers import Recipe
from diffjax.systems import Autoencoder, NoisePredictor, NoisyClassifier, System

__all__ = [
    "SYSTEMS",
    "Experiment",
    "abstract_batch",
    "build",
    "check_devices",
    "real_images",
    "sample_labels",
]


class Experiment(NamedTuple):
    """A config with everything that it names.

    Attributes:
        config: The config, with what was found from the data filled in.
        system: What is trained, and how it draws samples; None only while it is being made.
        source: The training data, or None when they were not opened.
        schedule: The forward process.
        recipe: Solver and grid of sampling.
        shape: Shape of an image or latent, ``(height, width, channels)``.
        num_classes: Number of classes that can be asked for, 0 when the system is unconditional and
            no classifier guides it.
        classifier: What guides sampling, where ``config.sample.classifier`` names a run; or None.
        predictor: What tells chains their noise, where ``config.dmcmc.predictor`` names a run.
        scale: Factor on the latents that the system is trained on; None of images.
        autoencoder: What decodes the latents, where ``config.data.autoencoder`` names a run and it
            was loaded; or None.
    """

    config: ml_collections.ConfigDict
    system: System | None
    source: Source | None
    schedule: Schedule
    recipe: Recipe
    shape: tuple[int, int, int]
    num_classes: int
    classifier: NoisyClassifier | None = None
    predictor: NoisePredictor | None = None
    scale: float | None = None
    autoencoder: Autoencoder | None = None


def build(
    config: ml_collections.ConfigDict,
    *,
    open_data: bool = True,
    classifier: NoisyClassifier | None = None,
    predictor: NoisePredictor | None = None,
    autoencoder: Autoencoder | None = None,
) -> Experiment:
    """Makes the experiment of a config. Only shapes are computed; nothing is written.

    Args:
        config: As described by ``configuration.FIELDS``; it is not changed.
        open_data: Whether to open the data. Drawing from a stored run needs none: its config has
            the shape and the number of classes.
        classifier: The one of the run that ``config.sample.classifier`` names, from
            ``serving.load_classifier``.
        predictor: The one that ``config.dmcmc.predictor`` names, from ``serving.load_predictor``.
        autoencoder: The one of the run that ``config.data.autoencoder`` names, from
            ``serving.load_autoencoder``. Only drawing images needs it.

    Returns:
        The experiment.

    Raises:
        ValueError: Anything in the config is unknown, of the wrong kind, or does not fit the rest.
    """
    validate(config)
    config = config.copy_and_resolve_references()
    make = choose("system", config.system, SYSTEMS)
    conditional = config.data.conditional
    # Of a converted checkpoint without classes it is not known how many its data have.
    recorded = "shape" in config.data and ("num_classes" in config.data or not conditional)
    recorded &= "scale" in config.data or not config.data.source.startswith("latents:")
    source = None
    if open_data or not recorded or config.network == EMPIRICAL:
        source = _open(config)
    if conditional and not config.data.num_classes:
        raise ValueError(
            "config.data.conditional is True, but the data have no labels: use labelled data, or "
            "set it to False"
        )
    schedule = components.schedule(config)
    num_classes = config.data.num_classes if conditional else 0
    _check_classifier(config, classifier, num_classes)
    latents.check(config, autoencoder)
    experiment = Experiment(
        config=config,
        system=None,
        source=source,
        schedule=schedule,
        recipe=components.recipe(config, schedule),
        shape=tuple(config.data.shape),
        num_classes=num_classes or (classifier.num_classes if classifier else 0),
        classifier=classifier,
        predictor=predictor,
        scale=config.data.get("scale"),
        autoencoder=autoencoder,
    )
    return experiment._replace(system=make(experiment))


def _check_classifier(
    config: ml_collections.ConfigDict, classifier: NoisyClassifier | None, num_classes: int
) -> None:
    """Raises ValueError where a classifier is missing or does not fit."""
    named = config.sample.classifier
    if not named and classifier is None:
        return
    if classifier is None:
        raise ValueError(
            f"config.sample.classifier={named!r} was not loaded: give build the result of "
            "serving.load_classifier"
        )
    if classifier.shape != tuple(config.data.shape):
        raise ValueError(
            f"config.sample.classifier={named!r} was trained on images {classifier.shape}, but "
            f"these are {tuple(config.data.shape)}"
        )
    if num_classes and classifier.num_classes != num_classes:
        raise ValueError(
            f"config.sample.classifier={named!r} knows {classifier.num_classes} classes, but the "
            f"system {num_classes}"
        )


def _open(config: ml_collections.ConfigDict) -> Source:
    """Opens the training data, and fills in what only they know."""
    if not config.data.source:
        raise ValueError(
            "config.data.source is empty: say which data to use, for example "
            "--config.data.source=folder:PATH"
        )
    with about("data"):
        source = data.create(config.data.source, split="train", **config.data.options)
    found = {"shape": tuple(source.shape), "num_classes": source.num_classes}
    if not source.levels:
        found["encoded_by"] = source.encoded_by
        if "scale" not in config.data:  # else that of a publication
            config.data.scale = source.scale
        if not config.data.autoencoder:
            raise ValueError(
                "config.data.autoencoder is empty: name the run that decodes the data "
                f"{source.name!r}; they were encoded by {source.autoencoder}"
            )
    elif config.data.autoencoder or "scale" in config.data:
        raise ValueError(
            f"config.data.autoencoder is of latents, but the data {source.name!r} are images: "
            "encode them with --mode encode, and train on --config.data.source=latents:DIR"
        )
    for field, value in found.items():
        given = config.data.get(field, value)
        if given != value:
            raise ValueError(
                f"config.data.{field} is {given}, but the data {source.name!r} have {value}: they "
                "are not the data of this experiment"
            )
    config.data.update(found)
    check_labels(source, config.data.conditional)
    return source


def _diffusion(experiment: Experiment) -> System:
    """A denoising network, or the training set itself in its place."""
    config, schedule = experiment.config, experiment.schedule
    num_classes = config.data.num_classes if config.data.conditional else 0
    draw = components.draw(
        config,
        schedule,
        experiment.recipe,
        experiment.shape,
        num_classes,
        experiment.classifier,
        experiment.predictor,
    )
    measure = components.measure(config, schedule)
    if config.network == EMPIRICAL:
        examples = data.in_memory(experiment.source)
        labels = np.zeros(len(examples), int) if examples.labels is None else examples.labels
        return systems.empirical(
            data.to_float(examples.images), labels, schedule, draw, num_classes
        )
    latent = {} if experiment.scale is None else {"prepare": systems.latents(experiment.scale)}
    system = systems.diffusion(
        components.network(config, num_classes),
        schedule,
        components.parametrization(config),
        objective=components.objective(config),
        times=components.times(config, schedule),
        draw=draw,
        measure=measure,
        num_classes=num_classes,
        label_dropout=config.loss.label_dropout,
        augment=components.augmentation(config, experiment.shape),
        shrink=upsampling.shrinking(config),
        **_training(config),
        **latent,
    )
    _check_network(experiment, system)
    return system


def _noisy_classifier(experiment: Experiment) -> System:
    """What guides the sampling of another run."""
    config = experiment.config
    if not config.data.conditional:
        raise ValueError(
            "config.data.conditional is False, but a classifier learns labels: set it to True"
        )
    system = systems.noisy_classifier(
        components.classifier_network(config, experiment.num_classes),
        experiment.schedule,
        components.parametrization(config),
        times=components.times(config, experiment.schedule),
        **_training(config),
    )
    _check_network(experiment, system)
    return system


def _noise_level(experiment: Experiment) -> System:
    """A predictor of noise levels: those of the config's schedule, seen with alpha = 1."""
    config = experiment.config
    if config.train.sample_every:
        raise ValueError(
            f"config.train.sample_every={config.train.sample_every}: a noise-level predictor draws "
            "no samples; set it to 0"
        )
    network = components.noise_level_network(config)
    noise = mcmc.noise_range(experiment.schedule)
    system = systems.noise_level(
        network,
        mcmc.noise_levels(noise.t_min, noise.t_max, network.levels),
        **_training(config),
    )
    _check_network(experiment, system)
    return system


def _autoencoder(experiment: Experiment) -> System:
    """What encodes the images of another run as latents."""
    config = experiment.config
    system = systems.autoencoder(
        components.autoencoder_network(config),
        objective=latents.reconstruction(config),
        **_training(config),
    )
    _check_network(experiment, system)
    return system


def _training(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Arguments of every system that is trained.

    Raises:
        ValueError: The average to be used is not among those kept.
    """
    if config.sample.ema and config.sample.ema not in map(str, config.optimizer.ema_rates):
        raise ValueError(
            f"config.sample.ema={config.sample.ema!r} is not kept: config.optimizer.ema_rates is "
            f"{config.optimizer.ema_rates}; use one of those, or '' for the raw parameters"
        )
    return {
        "optimizer": optimizer(config),
        "ema_rates": config.optimizer.ema_rates,
        "ema_warmup": config.optimizer.ema_warmup,
        "sample_ema": config.sample.ema,
        "microbatches": config.train.microbatches,
        "axis": parallel.AXIS if config.parallel.mode == "pmap" else None,
    }


def _check_network(experiment: Experiment, system: System) -> None:
    """Traces the network's initialisation: every network fails in a way of its own."""
    config = experiment.config
    with about("model"):
        try:
            jax.eval_shape(system.init, jax.random.key(0), abstract_batch(experiment, 1))
        except (TypeError, ArithmeticError, LookupError) as error:
            # A depth of -1, no heads, a width of 'wide'.
            raise ValueError(
                f"network {config.network!r} cannot be made with {config.model.to_dict()}: {error}"
            ) from error


# Makers of systems, by name, from the experiment without one.
SYSTEMS: dict[str, Callable[[Experiment], System]] = {
    "diffusion": _diffusion,
    "noisy_classifier": _noisy_classifier,
    "noise_level": _noise_level,
    "autoencoder": _autoencoder,
}


def abstract_batch(experiment: Experiment, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a training batch: images, or of latents the moments."""
    image = jax.ShapeDtypeStruct((size, *experiment.shape), jnp.uint8)
    if experiment.scale is not None:
        *latent, channels = experiment.shape
        image = jax.ShapeDtypeStruct((size, *latent, 2 * channels), jnp.float32)
    return {
        "image": image,
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def real_images(experiment: Experiment) -> Source:
    """The training images, which samples are compared with: of latents, those encoded."""
    source, config = experiment.source, experiment.config.data
    return source if source.levels else data.create_images(config.source, **config.options)


def check_devices(config: ml_collections.ConfigDict, devices: int) -> None:
    """Checks that a batch can be spread over the devices and cut into microbatches.

    Raises:
        ValueError: It cannot.
    """
    batch, parts, fsdp = config.train.batch_size, config.train.microbatches, config.parallel.fsdp
    if batch % (devices * parts):
        raise ValueError(
            f"config.train.batch_size={batch} must be a multiple of {devices * parts}: devices "
            f"({devices}) times config.train.microbatches ({parts})"
        )
    if config.parallel.mode == "pmap" and fsdp != 1:
        raise ValueError(f"config.parallel.fsdp={fsdp}: pmap replicates the state; set it to 1")
    if devices % fsdp:
        raise ValueError(f"config.parallel.fsdp={fsdp} must divide the {devices} devices")
