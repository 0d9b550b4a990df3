"""Systems, one file each: what is trained, and how it draws samples."""

from diffjax.systems.autoencoder import Autoencoder, autoencoder, latents, reconstruction
from diffjax.systems.base import Batch, Metrics, Request, Samples, System, gradient_update
from diffjax.systems.chains import chain_sampler
from diffjax.systems.diffusion import diffusion, sampler
from diffjax.systems.empirical import empirical
from diffjax.systems.noise_level import NoisePredictor, calibration, noise_level
from diffjax.systems.noisy_classifier import NoisyClassifier, judge, noisy_classifier

__all__ = [
    "Autoencoder",
    "Batch",
    "Metrics",
    "NoisePredictor",
    "NoisyClassifier",
    "Request",
    "Samples",
    "System",
    "autoencoder",
    "calibration",
    "chain_sampler",
    "diffusion",
    "empirical",
    "gradient_update",
    "judge",
    "latents",
    "noise_level",
    "noisy_classifier",
    "reconstruction",
    "sampler",
]
