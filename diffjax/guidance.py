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

__all__ = [
    "Combine",
    "autoguidance",
    "classifier",
    "classifier_free",
    "dynamic_threshold",
    "first_channels",
    "interval",
    "linear",
    "rescaled",
    "threshold",
]

Scale = Array | float | Callable[[Array], Array]
Combine = Callable[[Array, Array, Prediction, Prediction, Array], Prediction]


def linear(x: Array, t: Array, strong: Prediction, weak: Prediction, scale: Array) -> Prediction:
    """``weak + scale (strong - weak)``, with ``strong``'s variance: the plain combination.

    Args:
        x: State, ``(batch, ...)``, at which both were made.
        t: Its time.
        strong: What is guided towards.
        weak: What is guided away from.
        scale: Shaped to broadcast against ``x``.
    """
    del x, t  # shared by both, so the same combination of x0 and of eps stays consistent
    return Prediction(
        weak.x0 + scale * (strong.x0 - weak.x0),
        weak.eps + scale * (strong.eps - weak.eps),
        strong.variance,
    )


def rescaled(schedule: Schedule, share: float = 0.7) -> Combine:
    r"""The plain combination, its noise scaled back to the spread of the conditional one.

    .. math:: \epsilon' = \phi\, \epsilon\, \frac{\mathrm{std}(\epsilon_y)}{\mathrm{std}(\epsilon)}
              + (1 - \phi)\, \epsilon

    with standard deviations over each sample. Cures the over-saturation of strong guidance. Lin et
    al. 2024 (arXiv 2305.08891), eqs. (15) and (16), on ``eps``.

    Args:
        schedule: The forward process.
        share: ``phi`` in [0, 1]; 0 changes nothing.

    Raises:
        ValueError: The share is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"rescaled: share must lie in [0, 1], got {share}")

    def combine(x, t, strong, weak, scale) -> Prediction:
        guided = linear(x, t, strong, weak, scale)
        axes = tuple(range(1, x.ndim))
        spreads = (value.std(axis=axes, keepdims=True) for value in (strong.eps, guided.eps))
        eps = (share * jnp.divide(*spreads) + 1 - share) * guided.eps
        return from_eps(schedule, x, t, eps)._replace(variance=strong.variance)

    return combine


def first_channels(count: int) -> Combine:
    """The plain combination in the first ``count`` channels; the others are left unguided.

    What the released sampler of DiT does with 3 of its 4 latent channels, kept there for the sake
    of its published figures. For nothing else.

    Args:
        count: Channels guided, of the last axis.
    """

    def combine(x, t, strong, weak, scale) -> Prediction:
        guided = linear(x, t, strong, weak, scale)
        first = jnp.arange(x.shape[-1]) < count
        return Prediction(
            jnp.where(first, guided.x0, strong.x0),
            jnp.where(first, guided.eps, strong.eps),
            strong.variance,
        )

    return combine


def classifier_free(
    predict: Callable[[Array, Array, Array], Prediction],
    labels: Array,
    null_labels: Array,
    scale: Scale,
    *,
    combine: Combine = linear,
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
        combine: How the two become one: :func:`linear`, :func:`rescaled` or
            :func:`first_channels`.
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
        return combine(x, t, *both(x, t), _scale_at(scale, x, t))

    return with_evaluations(guided, 2 * evaluations(predict))


def autoguidance(
    predict: Predict, weak: Predict, scale: Scale, *, combine: Combine = linear
) -> Predict:
    r"""Autoguidance: away from a weaker model of the same thing.

    .. math:: \epsilon = \epsilon_{weak} + s\,(\epsilon - \epsilon_{weak})

    The weaker one has fewer parameters or less training, and the same labels; what both get wrong,
    but it more so, is pushed away, without the loss of diversity of class guidance. Evaluations of
    both a call. Karras et al. 2024 (arXiv 2406.02507), eq. (3).

    Args:
        predict: The prediction to guide.
        weak: That of the weaker model, on the same schedule.
        scale: ``s``, as for :func:`classifier_free`; 1 is ``predict`` itself.
        combine: As for :func:`classifier_free`.
    """

    def guided(x: Array, t: Array) -> Prediction:
        strong, other = predict(x, t), weak(x, t)
        return combine(x, t, strong, other, _scale_at(scale, x, t))

    return with_evaluations(guided, evaluations(predict) + evaluations(weak))


def _scale_at(scale: Scale, x: Array, t: Array) -> Array:
    return expand(scale(t) if callable(scale) else scale, x)


def interval(scale: Array | float, t_low: float, t_high: float) -> Callable[[Array], Array]:
    """Guidance in ``t_low <= t <= t_high`` only, as a scale for :func:`classifier_free`.

    ``s`` inside and 1 outside (Kynkaanniemi et al. 2024, eq. (5)). Published intervals are of the
    noise level ``r = sigma / alpha``, at which ``t = schedule.time(-log r)``. To save the second
    call outside too, solve the three parts of the grid one after another, the outer two without
    guidance.

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

    Dhariwal & Nichol 2021, algorithm 2 (the form for any ODE solver; for the chain's own, algorithm
    1, see :func:`diffjax.solvers.ancestral`). As published, a threshold goes inside: the shifted
    ``x0`` is not clipped again. One network evaluation a call, beside the classifier's gradient.

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
