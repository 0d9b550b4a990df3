"""Systems, one file each: what is trained, and how it draws samples."""

from diffjax.systems.base import Batch, Metrics, Request, Samples, System, gradient_update
from diffjax.systems.diffusion import diffusion, sampler
from diffjax.systems.empirical import empirical

__all__ = [
    "Batch",
    "Metrics",
    "Request",
    "Samples",
    "System",
    "diffusion",
    "empirical",
    "gradient_update",
    "sampler",
]
