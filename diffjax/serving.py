"""Runs that serve another: what judges its images, tells its noise, or decodes its latents."""

import hashlib
import os
from typing import Any

import jax
import numpy as np

from diffjax import checkpoint, components
from diffjax.experiment import Experiment, abstract_batch, build
from diffjax.mcmc import noise_levels, noise_range
from diffjax.options import about
from diffjax.state import select_parameters
from diffjax.systems import Autoencoder, NoisePredictor, NoisyClassifier, judge
from diffjax.workdir import load_config

__all__ = ["load_autoencoder", "load_classifier", "load_predictor"]


def load_classifier(workdir: str | os.PathLike) -> NoisyClassifier:
    """The classifier that was trained in a workdir, for ``experiment.build``.

    Raises:
        ValueError: The workdir holds no run, one of another system, or no checkpoint.
    """
    with about("sample.classifier"):
        experiment, params = _load(workdir, "noisy_classifier")
    config = experiment.config
    return NoisyClassifier(
        judge(
            components.classifier_network(config, experiment.num_classes),
            params,
            experiment.schedule,
            components.parametrization(config),
        ),
        experiment.schedule,
        experiment.shape,
        experiment.num_classes,
    )


def load_predictor(workdir: str | os.PathLike) -> NoisePredictor:
    """The noise-level predictor that was trained in a workdir, for ``experiment.build``.

    Raises:
        ValueError: The workdir holds no run, one of another system, or no checkpoint.
    """
    with about("dmcmc.predictor"):
        experiment, params = _load(workdir, "noise_level")
    network = components.noise_level_network(experiment.config)
    noise = noise_range(experiment.schedule)
    return NoisePredictor(
        lambda x: network.apply({"params": params}, x),
        noise_levels(noise.t_min, noise.t_max, network.levels),
        experiment.shape,
    )


def load_autoencoder(workdir: str | os.PathLike) -> Autoencoder:
    """The autoencoder that was trained in a workdir, or converted, for ``experiment.build``.

    Raises:
        ValueError: The workdir holds no run, one of another system, or no checkpoint.
    """
    with about("data.autoencoder"):
        experiment, params = _load(workdir, "autoencoder")
    network = components.autoencoder_network(experiment.config)
    digest = hashlib.sha256(repr(network.clone(scale=1.0, dtype=None)).encode())
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(params)):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    scale = experiment.config.model.get("scale", 0.0)
    return Autoencoder(network, params, experiment.shape, scale, digest.hexdigest()[:12])


def _load(workdir: str | os.PathLike, system: str) -> tuple[Experiment, Any]:
    """The experiment of a workdir, which must be of a system, and the parameters it uses."""
    config = load_config(workdir)
    if config.system != system:
        raise ValueError(f"{workdir} holds a run of system {config.system!r}, not of {system!r}")
    experiment = build(config, open_data=False)
    shapes = jax.eval_shape(
        experiment.system.init, jax.random.key(0), abstract_batch(experiment, 1)
    )
    state = checkpoint.restore_for_sampling(workdir, shapes)
    return experiment, select_parameters(state, config.sample.ema)
