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
    """
    # log weights by label: only the examples of the class asked for count, or all for null.
    classes = np.asarray(labels)
    allowed = np.arange(num_classes + 1)[:, None] == classes[None]
    allowed[num_classes] = True
    log_weights = jnp.where(allowed, 0.0, -jnp.inf)

    def predict(x: Array, t: Array, labels: Array | None) -> Prediction:
        if labels is None:
            return analytic.empirical(images).predict(schedule)(x, t)

        def single(x, t, label):
            mixture = analytic.Mixture(images, 0.0, log_weights[label])
            return jax.tree.map(lambda leaf: leaf[0], mixture.predict(schedule)(x[None], t))

        return jax.vmap(single)(x, jnp.broadcast_to(t, x.shape[:1]), labels)

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
