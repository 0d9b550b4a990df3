"""The parts of an experiment, each from its section of the config.

Every function takes the config first and what the part depends on after it, and finds what is wrong
with its section: unknown names, unknown options, parts that do not fit together. Parts are traced
for their shapes where that shows more; nothing is computed. The registries are plain dicts: a new
network or schedule is one more entry.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffjax import augmentation as augmentations
from diffjax import bits, chains, guidance, losses, models, schedules, solvers
from diffjax import prediction as predictions
from diffjax.losses import Slots
from diffjax.options import about, choose, keywords, unknown
from diffjax.prediction import Parametrization, Prediction
from diffjax.schedules import Discrete, Schedule, half_log_snr
from diffjax.solvers import Recipe, learned, timesteps
from diffjax.systems import NoisePredictor, NoisyClassifier, Request, sampler
from diffjax.systems.diffusion import Draw, Objective
from diffjax.typing import Array

__all__ = [
    "AUTOENCODERS",
    "CHAINS",
    "CLASSIFIERS",
    "EMPIRICAL",
    "NETWORKS",
    "PREDICTORS",
    "SCHEDULES",
    "augmentation",
    "autoencoder_network",
    "check_classes",
    "classifier_network",
    "draw",
    "measure",
    "network",
    "noise_level_network",
    "objective",
    "parametrization",
    "recipe",
    "sample_labels",
    "schedule",
    "times",
]

NETWORKS: dict[str, type[nn.Module]] = {
    "adm": models.ADM,
    "adm_super_resolution": models.ADMSuperResolution,
    "dit": models.DiT,
    "mlp": models.MLP,
    "ncsnpp": models.NCSNpp,
    "unet": models.UNet,
    "uvit": models.UViT,
}
# Those that tell classes of noisy images apart, instead of predicting the noise.
CLASSIFIERS: dict[str, type[nn.Module]] = {"adm_classifier": models.ADMClassifier}
# Of the system "noise_level", which tells how much noise is in an image.
PREDICTORS: dict[str, type[nn.Module]] = {
    "noise_level_conv": models.NoiseLevelConv,
    "noise_level_mlp": models.NoiseLevelMLP,
}
# Of the system "autoencoder", which encodes images as smaller latents.
AUTOENCODERS: dict[str, type[nn.Module]] = {"autoencoder_kl": models.AutoencoderKL}
LEARNED = "learned"  # a sampler that was fitted, where a solver would be named
EMPIRICAL = "empirical"  # the training set itself, where a network would be named

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": schedules.Cosine,
    "discrete_cosine": Discrete.cosine,
    "discrete_linear": Discrete.linear,
    "discrete_scaled_linear": Discrete.scaled_linear,
    "edm": schedules.EDM,
    "flow_matching": schedules.FlowMatching,
    "subvp": schedules.SubVP,
    "ve": schedules.VE,
    "vp_linear": schedules.VPLinear,
}

LIMITS = {"static": guidance.threshold, "dynamic": guidance.dynamic_threshold}

# Objectives of a chain, in place of a target; what else they take stands with the weighting's.
BOUNDS = {"hybrid": losses.hybrid, "variational": losses.variational}

CHAINS = "dmcmc"
SAMPLERS = dict.fromkeys(("solver", CHAINS))

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def schedule(config: ml_collections.ConfigDict) -> Schedule:
    """The forward process."""
    make = choose("schedule.name", config.schedule.name, SCHEDULES)
    with about("schedule"):
        options = keywords("schedule.options", make, config.schedule.options)
        made = make(**options)
        ends = half_log_snr(made, made.t_min), half_log_snr(made, made.t_max)
        # Written so that NaN fails too.
        if not (0 <= made.t_min < made.t_max and ends[0] > ends[1]):
            raise ValueError(
                f"{config.schedule.name} with {options} is no forward process: the noise must grow "
                f"from t_min={made.t_min} to t_max={made.t_max}"
            )
    return made


def parametrization(config: ml_collections.ConfigDict) -> Parametrization:
    """What the network predicts."""
    with about("prediction.parametrization"):
        mean = predictions.parametrization(
            config.prediction.parametrization, sigma_data=config.prediction.sigma_data
        )
    return predictions.learned_range(mean) if config.prediction.learned_variance else mean


def network(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
    """The network, told the number of classes and whether it has a variance to predict."""
    if config.network not in NETWORKS:
        raise unknown("config.network: unknown name", config.network, [*NETWORKS, EMPIRICAL])
    defaults = {}
    if NETWORKS[config.network] is models.MLP:
        # EDM tells its network log(sigma) / 4, all others an index up to 999.
        of_order_one = config.prediction.parametrization == "edm"
        defaults["time_embedding"] = "fourier" if of_order_one else "sinusoidal"
    return _module(
        config,
        NETWORKS,
        defaults,
        num_classes=num_classes,
        learned_variance=config.prediction.learned_variance,
    )


def classifier_network(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
    """The network of a classifier of noisy images."""
    return _module(config, CLASSIFIERS, num_classes=num_classes)


def noise_level_network(config: ml_collections.ConfigDict) -> nn.Module:
    """The network of a noise-level predictor; the number of levels is one of its options."""
    return _module(config, PREDICTORS)


def autoencoder_network(config: ml_collections.ConfigDict) -> nn.Module:
    """An autoencoder."""
    return _module(config, AUTOENCODERS)


def _module(
    config: ml_collections.ConfigDict,
    registry: dict[str, type[nn.Module]],
    defaults: Mapping[str, Any] | None = None,
    **inferred,
) -> nn.Module:
    """The network that the config names, with its options and what is known from elsewhere."""
    module = choose("network", config.network, registry)
    options = keywords("model", module, config.model, reserved=("parent", "name", *inferred))
    if "dtype" in options:
        options["dtype"] = choose("model.dtype", options["dtype"], DTYPES)
    return module(**{**(defaults or {}), **options}, **inferred)


def times(config: ml_collections.ConfigDict, schedule: Schedule) -> Callable[..., Array]:
    """How training draws times: ``(schedule, key, slots) -> t``."""
    make = choose("loss.times", config.loss.times, losses.TIMES)
    taken = ("schedule", "key", "slots")
    with about("loss"):
        options = keywords("loss.times_options", make, config.loss.times_options, reserved=taken)
        drawn = functools.partial(make, **options)
        slots = Slots(jnp.arange(2), 2)
        jax.eval_shape(lambda key: drawn(schedule, key, slots), jax.random.key(0))
    return drawn


def objective(config: ml_collections.ConfigDict) -> Objective:
    """The loss: a target without weighting, ``x0`` with one, or a bound of a chain."""
    loss = config.loss
    choose("loss.target", loss.target, losses.TARGETS | BOUNDS)
    if loss.target in BOUNDS:
        return _bound(config)
    if not loss.weighting:
        if loss.weighting_options:
            raise ValueError("config.loss.weighting_options are set, but not config.loss.weighting")
        return functools.partial(losses.regression, target=loss.target)
    make = choose("loss.weighting", loss.weighting, losses.WEIGHTINGS)
    if loss.target != "x0":
        raise ValueError(
            f"config.loss.weighting={loss.weighting!r} multiplies the error of x0, but "
            f"config.loss.target is {loss.target!r}: set the target to 'x0' or the weighting to ''"
        )
    options = keywords("loss.weighting_options", make, loss.weighting_options)
    if make is losses.edm_weight:
        options.setdefault("sigma_data", config.prediction.sigma_data)
    return functools.partial(losses.weighted_x0, weighting=make(**options))


def _bound(config: ml_collections.ConfigDict) -> Objective:
    """Improved DDPM's losses, which are of the steps of a chain and of its learned variances."""
    loss, make = config.loss, BOUNDS[config.loss.target]
    target = f"config.loss.target={loss.target!r}"
    if loss.weighting:
        raise ValueError(f"{target} takes no weighting: set config.loss.weighting to ''")
    if loss.times != "discrete":
        raise ValueError(
            f"{target} is a loss of the steps of a chain: set config.loss.times to 'discrete'"
        )
    taken = ("predict", "schedule", "x0", "t", "noise")
    options = keywords("loss.weighting_options", make, loss.weighting_options, reserved=taken)
    if options.get("variance", "learned") == "learned" and not config.prediction.learned_variance:
        raise ValueError(f"{target} trains variances: set config.prediction.learned_variance")
    return functools.partial(make, **options)


def augmentation(
    config: ml_collections.ConfigDict, shape: tuple[int, int, int]
) -> augmentations.Augment | None:
    """How training images are deformed, if they are: ``(images, keys) -> (images, told)``."""
    loss = config.loss
    if not loss.augmentation:
        if loss.augmentation_options:
            raise ValueError(
                "config.loss.augmentation_options are set, but not config.loss.augmentation"
            )
        return None
    make = choose("loss.augmentation", loss.augmentation, augmentations.AUGMENTATIONS)
    module = choose("network", config.network, NETWORKS)
    if "augmentation" not in inspect.signature(module.__call__).parameters:
        raise ValueError(
            f"config.loss.augmentation={loss.augmentation!r} must be told to the network, and "
            f"network {config.network!r} cannot be told: set it to ''"
        )
    options = keywords(
        "loss.augmentation_options", make, loss.augmentation_options, ("images", "keys")
    )
    deform = functools.partial(make, **options)
    with about("loss.augmentation_options"):
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        jax.eval_shape(deform, jax.ShapeDtypeStruct((1, *shape), jnp.float32), keys)
    return deform


def recipe(config: ml_collections.ConfigDict, schedule: Schedule, **given) -> Recipe:
    """Solver and grid; ``given`` are arguments of the solver that no config can hold."""
    sample = config.sample
    choose("sampler", config.sampler, SAMPLERS)
    if config.sampler == CHAINS:
        return chains.recipe(config, schedule)
    named = {**solvers.SOLVERS, LEARNED: learned.load}
    solver = choose("sample.solver", sample.solver, named)
    if sample.solver == LEARNED:
        return _learned(config, schedule)
    choose("sample.grid", sample.grid, timesteps.GRIDS)
    with about("sample"):
        options = keywords(
            "sample.options", solver, sample.options, reserved=("schedule", "gradient")
        )
        return solvers.recipe(
            sample.solver,
            schedule,
            sample.calls,
            grid=sample.grid,
            denoise=sample.denoise,
            **options,
            **given,
        )


def _learned(config: ml_collections.ConfigDict, schedule: Schedule) -> Recipe:
    """A learned sampler, which has its own grid and ends with the step to the data."""
    with about("sample"):
        options = keywords("sample.options", learned.load, config.sample.options)
        fitted = learned.load(**options)
        calls, start = fitted.times.shape[0], float(fitted.ts[0])
        if calls != config.sample.calls:
            raise ValueError(
                f"{options['path']} makes {calls} calls, not calls={config.sample.calls}: fit one "
                "with --mode fit"
            )
        if not np.isclose(start, schedule.t_max, rtol=1e-4):
            raise ValueError(f"{options['path']} starts at t={start:g}: it is for another schedule")
        return Recipe(learned.solver(fitted), fitted.ts, denoise=False)


def draw(
    config: ml_collections.ConfigDict,
    schedule: Schedule,
    made: Recipe,
    shape: tuple[int, int, int],
    num_classes: int,
    classifier: NoisyClassifier | None = None,
    predictor: NoisePredictor | None = None,
) -> Draw:
    """How samples are drawn: with the recipe made, by chains or not, guidance and thresholding."""
    sample = config.sample
    scales = {"sample.guidance": sample.guidance, "evaluate.guidance": config.evaluate.guidance}
    for field, scale in scales.items():
        if scale == 1 or classifier is not None:
            continue
        if not num_classes:
            raise ValueError(
                f"config.{field}={scale}, but the system is unconditional: set it to 1, or "
                "config.data.conditional to True"
            )
        if not config.loss.label_dropout and config.network != EMPIRICAL:
            raise ValueError(
                f"config.{field}={scale} needs a network that knows the null label: train with "
                "config.loss.label_dropout above 0 (0.1 is usual), or set the guidance to 1"
            )
    modifiers = {}
    if sample.guidance_interval:
        low, high = sample.guidance_interval
        with about("sample.guidance_interval"):
            guidance.interval(1.0, low, high)
        modifiers["scale"] = lambda scale, t: guidance.interval(scale, low, high)(t)
    if sample.guidance_channels:
        modifiers["combine"] = guidance.first_channels(sample.guidance_channels)
    if sample.threshold:
        limit = LIMITS[sample.threshold]
        modifiers["limit"] = functools.partial(limit, schedule=schedule)
    if classifier is not None:
        modifiers["classifier"] = classifier
        if sample.solver == "ancestral" and config.sampler != CHAINS:
            modifiers["guided_chain"] = lambda gradient: recipe(config, schedule, gradient=gradient)
    known = num_classes or (classifier.num_classes if classifier else 0)
    if config.sampler == CHAINS:
        modifiers["walk"] = chains.walk(config, schedule, made, shape, known, predictor)
    drawn = sampler(schedule, made, shape, num_classes=num_classes, **modifiers)

    def predict(x: Array, t: Array, labels: Array | None) -> Prediction:
        return Prediction(x, x, jnp.zeros_like(x) if config.prediction.learned_variance else None)

    labels = sample_labels(sample.labels, 1, known)
    with about("sample"):
        request = Request(jnp.arange(1), labels, sample.guidance)
        jax.eval_shape(lambda key: drawn(predict, key, request).images, jax.random.key(0))
    return drawn


def measure(config: ml_collections.ConfigDict, schedule: Schedule) -> bits.Measure | None:
    """What is measured of images held out: their likelihood, or nothing."""
    kind = config.evaluate.likelihood
    if not kind:
        return None
    if config.network == EMPIRICAL:
        raise ValueError(
            f"config.evaluate.likelihood={kind!r}, but the training set itself has no density: use "
            "'' with config.network='empirical'"
        )
    if config.prediction.learned_variance:
        variance = "learned"
    elif config.sample.solver == "ancestral":
        variance = config.sample.options.get("variance", "small")
    else:
        variance = "small"
    with about("evaluate.likelihood"):
        return bits.LIKELIHOODS[kind](schedule, variance)


def sample_labels(spec: str, number: int, num_classes: int, seed: int = 0) -> np.ndarray | None:
    """The classes to draw, from ``config.sample.labels``.

    Args:
        spec: ``'cycle'`` for 0, 1, 2, ... in turn, ``'random'``, or classes as in ``'3,3,7'``,
            which are repeated as often as needed.
        number: How many.
        num_classes: Number of classes the system knows; 0 when it is unconditional.
        seed: Of the random classes.

    Returns:
        int32 ``(number,)``, or None for an unconditional system.

    Raises:
        ValueError: The text is none of these, or a label is out of range.
    """
    if spec in ("cycle", "random"):
        if not num_classes:
            return None
        if spec == "cycle":
            return np.arange(number, dtype=np.int32) % num_classes
        return np.random.default_rng(seed).integers(num_classes, size=number, dtype=np.int32)
    field = f"config.sample.labels={spec!r}"
    try:
        labels = [int(part) for part in spec.split(",")]
    except ValueError:
        raise ValueError(f"{field}: use 'cycle', 'random' or classes as in '3,3,7'") from None
    if not num_classes:
        raise ValueError(f"{field}, but the system is unconditional: use 'cycle'")
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise ValueError(f"{field}: no class {outside[0]}, classes are 0..{num_classes - 1}")
    return np.resize(np.asarray(labels, np.int32), number)


def check_classes(labels: np.ndarray | None, number: int, classes: int) -> None:
    """Raises ValueError where labels are not ``number`` classes of a system of so many."""
    if not classes:
        if labels is not None:
            raise ValueError("this system is unconditional and takes no labels")
        return
    given = np.asarray(labels)
    fit = given.shape == (number,) and np.issubdtype(given.dtype, np.integer)
    if not fit or given.min() < 0 or given.max() >= classes:
        raise ValueError(f"this system needs labels: {number} integers in 0..{classes - 1}")
