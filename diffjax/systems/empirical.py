"""The data set itself as the network: what a perfectly memorising model would draw.

A sanity mode. The exact ``predict`` of the training images goes through the same solver, guidance
and evaluation as a trained network; what comes out should be training images. If it is noise, the
sampler's settings are wrong, not the training.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import analytic
from diffjax import state as states
from diffjax.prediction import Prediction
from diffjax.schedules import Schedule
from diffjax.systems.base import System
from diffjax.systems.diffusion import Draw
from diffjax.typing import Array

__all__ = ["empirical"]

# Numbers in the differences between samples and examples held at a time: 64 MiB in float32.
CHUNK = 2**24


def empirical(
    images: Array, labels: Array, schedule: Schedule, draw: Draw, num_classes: int = 0
) -> System:
    """A system without parameters, whose prediction is exact for the given examples.

    Args:
        images: Examples in [-1, 1], ``(n, H, W, C)``.
        labels: Their classes, ``(n,)``.
        schedule: The forward process.
        draw: How samples are drawn; see :func:`diffjax.systems.diffusion.sampler`.
        num_classes: Number of classes; 0 ignores the labels.

    Raises:
        ValueError: A class has no example.
    """
    # log weights by label: only the examples of the class asked for count, or all for null.
    allowed = np.arange(num_classes + 1)[:, None] == np.asarray(labels)
    allowed[num_classes] = True
    if not allowed.any(axis=1).all():
        missing = int(allowed.any(axis=1).argmin())
        raise ValueError(f"the data have no example of class {missing}: it cannot be drawn")
    log_weights = jnp.where(allowed, 0.0, -jnp.inf)
    chunk = max(1, CHUNK // np.size(images))

    def predict(x: Array, t: Array, labels: Array | None) -> Prediction:
        labels = jnp.full(x.shape[:1], num_classes) if labels is None else labels

        def single(args):
            x, t, label = args
            mixture = analytic.Mixture(images, log_weights=log_weights[label])
            return jax.tree.map(lambda leaf: leaf[0], mixture.predict(schedule)(x[None], t))

        times = jnp.broadcast_to(t, x.shape[:1])
        return jax.lax.map(single, (x, times, labels), batch_size=chunk)

    def init(key, batch):
        del batch
        return states.create(key, {}, optax.identity())

    def update(state, batch, key):
        raise ValueError(
            "the empirical system has no parameters to train: use --mode sample or evaluate"
        )

    def sample(state, key, request):
        return draw(predict, key, request)

    return System(init, update, sample, conditional=num_classes > 0)
