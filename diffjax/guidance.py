"""Guidance and thresholding, each a function from ``predict`` to ``predict``.

They compose by application: dynamic thresholding of a classifier-free guided prediction is
``dynamic_threshold(classifier_free(...), schedule)``. Whatever changes ``x0`` here changes ``eps``
with it, so that ``x_t = alpha x0 + sigma eps`` still holds and every solver sees one consistent
prediction. The calls they add are declared, and counted in a solution's ``nfe``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict, Prediction, evaluations, from_eps, from_x0, with_evaluations
from diffjax.schedules import Schedule, expand
from diffjax.typing import Array

__all__ = ["classifier", "classifier_free", "dynamic_threshold", "interval", "threshold"]

Scale = Array | float | Callable[[Array], Array]


def classifier_free(
    predict: Callable[[Array, Array, Array], Prediction],
    labels: Array,
    null_labels: Array,
    scale: Scale,
    *,
    doubled_batch: bool = True,
) -> Predict:
    r"""Classifier-free guidance.

    .. math:: \epsilon = \epsilon_\varnothing + s\,(\epsilon_y - \epsilon_\varnothing)

    ``s = 1`` is the plain conditional prediction, ``s = 0`` the unconditional one. (The paper's
    weight is ``w = s - 1``.) Two network evaluations a call. Ho & Salimans 2022, eq. (6).

    Args:
        predict: ``(x, t, labels) -> Prediction``.
        labels: What to generate, shape ``(batch, ...)``.
        null_labels: The labels that mean none, of the same shape, or a scalar for all.
        scale: ``s``: a scalar, one per sample ``(batch,)``, or a function of ``t`` giving either
            (see :func:`interval`).
        doubled_batch: One call on a batch twice the size, faster where memory allows; otherwise
            two calls. The results agree to rounding.
    """
    null_labels = jnp.broadcast_to(null_labels, labels.shape)

    def both(x: Array, t: Array) -> tuple[Prediction, Prediction]:
        if not doubled_batch:
            return predict(x, t, labels), predict(x, t, null_labels)
        times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        twice = predict(jnp.concatenate([x, x]), times, jnp.concatenate([labels, null_labels]))
        n = x.shape[0]
        return (
            jax.tree.map(lambda leaf: leaf[:n], twice),
            jax.tree.map(lambda leaf: leaf[n:], twice),
        )

    def guided(x: Array, t: Array) -> Prediction:
        conditional, unconditional = both(x, t)
        s = expand(scale(t) if callable(scale) else scale, x)
        # x is shared, so the same combination of x0 and of eps stays consistent.
        return Prediction(
            unconditional.x0 + s * (conditional.x0 - unconditional.x0),
            unconditional.eps + s * (conditional.eps - unconditional.eps),
            conditional.variance,
        )

    return with_evaluations(guided, 2 * evaluations(predict))


def interval(scale: Array | float, t_low: float, t_high: float) -> Callable[[Array], Array]:
    """Guidance in ``t_low <= t <= t_high`` only, as a scale for :func:`classifier_free`.

    ``s`` inside and 1 outside (Kynkaanniemi et al. 2024, eq. (5)). To save the second call outside
    too, solve the three parts of the grid one after another, the outer two without guidance.

    Raises:
        ValueError: The interval is empty.
    """
    if not t_low < t_high:
        raise ValueError(f"guidance interval: t_low {t_low} must be below t_high {t_high}")
    return lambda t: jnp.where((t_low <= t) & (t <= t_high), scale, 1.0)


def classifier(
    predict: Predict,
    schedule: Schedule,
    log_probability: Callable[[Array, Array], Array],
    scale: Array | float = 1.0,
) -> Predict:
    r"""Classifier guidance.

    .. math:: \hat\epsilon = \epsilon - s\,\sigma_t\, \nabla_x \log p(y | x_t)

    Dhariwal & Nichol 2021, algorithm 2 (the form for any ODE solver). One network evaluation a
    call, beside the classifier's gradient.

    Args:
        predict: The prediction to guide.
        schedule: The forward process.
        log_probability: ``(x, t) -> log p(y | x_t)``, shape ``(batch,)``, labels closed over; the
            classifier must know noisy inputs.
        scale: ``s``, a scalar or one per sample.
    """

    def guided(x: Array, t: Array) -> Prediction:
        plain = predict(x, t)
        gradient = jax.grad(lambda x: log_probability(x, t).sum())(x)
        eps = plain.eps - expand(scale, x) * expand(schedule.sigma(t), x) * gradient
        return from_eps(schedule, x, t, eps)._replace(variance=plain.variance)

    return with_evaluations(guided, evaluations(predict))


def threshold(
    predict: Predict, schedule: Schedule, low: float = -1.0, high: float = 1.0
) -> Predict:
    """Static thresholding: ``x0`` clipped to the range of the data, and ``eps`` follows.

    What the released sampler of Ho et al. 2020 does, and what the paper's image quality needs.

    Args:
        predict: The prediction to threshold.
        schedule: The forward process.
        low: Least value of the data.
        high: Largest value of the data.

    Raises:
        ValueError: The range is empty.
    """
    if not low < high:
        raise ValueError(f"threshold: low {low} must be below high {high}")

    def clipped(x: Array, t: Array) -> Prediction:
        plain = predict(x, t)
        x0 = jnp.clip(plain.x0, low, high)
        return _with_x0(schedule, x, t, plain, x0)

    return with_evaluations(clipped, evaluations(predict))


def dynamic_threshold(
    predict: Predict, schedule: Schedule, quantile: float = 0.995, floor: float = 1.0
) -> Predict:
    r"""Dynamic thresholding: the range of each sample's largest values is pressed into [-1, 1].

    .. math:: x_0 \leftarrow \mathrm{clip}(x_0, -s, s) / s, \quad
              s = \max(\mathrm{quantile}_q |x_0|, \text{floor})

    For pixel models under strong guidance. Saharia et al. 2022 (Imagen), section 2.3.

    Args:
        predict: The prediction to threshold.
        schedule: The forward process.
        quantile: ``q`` in (0, 1], over all pixels of a sample.
        floor: Least ``s``. At 1, samples that lie in [-1, 1] are left alone.

    Raises:
        ValueError: The quantile or the floor is out of range.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"dynamic_threshold: quantile must lie in (0, 1], got {quantile}")
    if not floor > 0:
        raise ValueError(f"dynamic_threshold: floor must be positive, got {floor}")

    def clipped(x: Array, t: Array) -> Prediction:
        plain = predict(x, t)
        magnitude = jnp.abs(plain.x0).reshape(x.shape[0], -1)
        s = expand(jnp.maximum(jnp.quantile(magnitude, quantile, axis=-1), floor), x)
        return _with_x0(schedule, x, t, plain, jnp.clip(plain.x0, -s, s) / s)

    return with_evaluations(clipped, evaluations(predict))


def _with_x0(schedule: Schedule, x: Array, t: Array, plain: Prediction, x0: Array) -> Prediction:
    """The prediction with another ``x0``; untouched values keep their ``eps`` to the bit."""
    eps = jnp.where(x0 == plain.x0, plain.eps, from_x0(schedule, x, t, x0).eps)
    return Prediction(x0, eps, plain.variance)
