"""Systems, one file each: what is trained, and how it draws samples."""

from diffjax.systems.base import Batch, Metrics, Request, Samples, System, gradient_update
from diffjax.systems.diffusion import diffusion, sampler
from diffjax.systems.empirical import empirical
from diffjax.systems.noise_level import calibration, noise_level
from diffjax.systems.noisy_classifier import NoisyClassifier, judge, noisy_classifier

__all__ = [
    "Batch",
    "Metrics",
    "NoisyClassifier",
    "Request",
    "Samples",
    "System",
    "calibration",
    "diffusion",
    "empirical",
    "gradient_update",
    "judge",
    "noise_level",
    "noisy_classifier",
    "sampler",
]
