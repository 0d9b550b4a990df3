"""Guidance and thresholding, against exact scores and their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import guidance, solvers
from diffjax.analytic import Gaussian
from diffjax.prediction import Prediction, evaluations, with_evaluations
from diffjax.schedules import EDM, VPLinear, expand
from tests.two_classes import (
    LABELS,
    NULL,
    cfg,
    consistent,
    each_schedule,
    exact,
    example,
    mixture,
    simple,
)

# Classifier-free guidance.


@each_schedule
def test_scale_one_is_conditional_and_zero_unconditional(schedule, x64):
    x, t = example(schedule)
    for scale, labels in ((1.0, LABELS), (0.0, np.full(5, NULL))):
        got, plain = cfg(schedule, scale)(x, t), simple(schedule)(x, t, labels)
        chex.assert_trees_all_close((got.x0, got.eps), (plain.x0, plain.eps), rtol=1e-12)


def test_linear_in_the_scale_and_consistent(x64):
    schedule = VPLinear()
    x, t = example(schedule)
    at = {s: cfg(schedule, s)(x, t) for s in (0.0, 1.0, 3.5)}
    for field in ("x0", "eps"):
        zero, one, far = (getattr(at[s], field) for s in (0.0, 1.0, 3.5))
        np.testing.assert_allclose(far, zero + 3.5 * (one - zero), rtol=1e-12)
    consistent(schedule, x, t, at[3.5])


@each_schedule
def test_is_the_tilted_score_combination(schedule, x64):
    """eps = -sigma [s grad log p(x|y) + (1 - s) grad log p(x)], from the densities."""
    x, t = example(schedule)
    scales, labels = jnp.array([0.0, 0.5, 1.0, 2.0, 5.0]), np.array([0, 1, 0, 1, 1])

    @jax.jit
    @jax.grad
    def tilted(x):
        zero, one, whole = (mixture(y).log_density(schedule, x, t) for y in (0, 1, NULL))
        return (scales * jnp.where(labels == 0, zero, one) + (1 - scales) * whole).sum()

    guided = guidance.classifier_free(exact(schedule), jnp.asarray(labels), NULL, scales)
    got = jax.jit(guided)(x, t)
    expected = -expand(schedule.sigma(t), x) * tilted(x)
    np.testing.assert_allclose(got.eps, expected, rtol=1e-8, atol=1e-10)
    consistent(schedule, x, t, got)


def test_variance_is_the_conditional_ones():
    x, t = example(VPLinear())
    got, conditional = cfg(VPLinear(), 3.0)(x, t), simple(VPLinear())(x, t, LABELS)
    np.testing.assert_allclose(got.variance, conditional.variance, rtol=1e-6)


@pytest.mark.parametrize("time", [jnp.linspace(0.1, 0.9, 5), 0.4], ids=["per_sample", "scalar"])
@pytest.mark.parametrize("scale", [2.0, np.linspace(0, 4, 5), lambda t: 1 + t])
def test_one_call_of_twice_the_batch_is_two_calls(scale, time):
    schedule, calls = VPLinear(), []
    x, _ = example(schedule)

    def predict(x, t, labels):
        calls.append((x.shape[0], jnp.shape(t), labels.shape[0]))
        return simple(schedule)(x, t, labels)

    doubled, twice = (
        guidance.classifier_free(predict, jnp.asarray(LABELS), NULL, scale, doubled_batch=how)(
            x, time
        )
        for how in (True, False)
    )
    chex.assert_trees_all_close(doubled, twice, rtol=1e-5, atol=1e-6)
    times = jnp.shape(time)
    assert calls == [(10, times and (10,), 10), (5, times, 5), (5, times, 5)]


def test_a_scale_for_each_sample():
    schedule = VPLinear()
    x, t = example(schedule)
    scales = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])
    together = cfg(schedule, scales)(x, t)
    for i, s in enumerate(scales):
        alone = cfg(schedule, s)(x, t)
        chex.assert_trees_all_close(together.eps[i], alone.eps[i], rtol=1e-5)


def test_null_labels_may_be_vectors():
    """Labels need not be numbers: an embedding, with zeros for none."""

    def predict(x, t, labels):
        return Prediction(labels, labels)

    labels = jnp.arange(6.0).reshape(3, 2)
    for null in (jnp.zeros((3, 2)), 0.0):
        got = guidance.classifier_free(predict, labels, null, 2.0)(jnp.ones((3, 2)), 0.5)
        np.testing.assert_array_equal(got.x0, 2 * labels)


# How two predictions become one.


def test_linear_is_what_is_combined_without_saying_so():
    schedule = VPLinear()
    x, t = example(schedule)
    chex.assert_trees_all_equal(
        cfg(schedule, 3.0)(x, t), cfg(schedule, 3.0, combine=guidance.linear)(x, t)
    )


@each_schedule
def test_rescaled_noise_has_the_conditional_spread(schedule, x64):
    """All of it at share 1, none at 0, in between a mean of both; and x0 follows."""
    x, t = example(schedule)
    plain, conditional = cfg(schedule, 5.0)(x, t), simple(schedule)(x, t, LABELS)
    got = {
        share: cfg(schedule, 5.0, combine=guidance.rescaled(schedule, share))(x, t)
        for share in (0.0, 0.7, 1.0)
    }
    np.testing.assert_allclose(got[0.0].eps, plain.eps, rtol=1e-12)
    np.testing.assert_allclose(got[0.0].x0, plain.x0, rtol=1e-9)
    spread = np.std(conditional.eps, axis=1)
    assert np.abs(np.std(plain.eps, axis=1) / spread - 1).max() > 0.1
    np.testing.assert_allclose(np.std(got[1.0].eps, axis=1), spread, rtol=1e-12)
    mean = 0.7 * got[1.0].eps + 0.3 * plain.eps
    np.testing.assert_allclose(got[0.7].eps, mean, rtol=1e-12)
    consistent(schedule, x, t, got[0.7])


def test_first_channels_are_guided_and_the_others_conditional():
    schedule = VPLinear()
    x, t = example(schedule)
    got = cfg(schedule, 4.0, combine=guidance.first_channels(1))(x, t)
    guided, conditional = cfg(schedule, 4.0)(x, t), simple(schedule)(x, t, LABELS)
    for field in ("x0", "eps"):
        first, rest = getattr(got, field)[:, 0], getattr(got, field)[:, 1]
        np.testing.assert_allclose(first, getattr(guided, field)[:, 0], rtol=1e-6)
        np.testing.assert_allclose(rest, getattr(conditional, field)[:, 1], rtol=1e-6)
    consistent_in_float32 = (
        schedule.alpha(t)[:, None] * got.x0 + schedule.sigma(t)[:, None] * got.eps
    )
    np.testing.assert_allclose(consistent_in_float32, x, rtol=1e-4, atol=1e-5)


# Autoguidance.


def test_a_weaker_model_of_no_label_is_classifier_free_guidance():
    schedule = VPLinear()
    x, t = example(schedule)
    strong, weak = (lambda x, t, y=y: simple(schedule)(x, t, y) for y in (LABELS, np.full(5, NULL)))
    scale = jnp.linspace(0, 4, 5)
    got = guidance.autoguidance(strong, with_evaluations(weak, 3), scale)
    chex.assert_trees_all_close(got(x, t), cfg(schedule, scale)(x, t), rtol=1e-5, atol=1e-6)
    assert evaluations(got) == 4


def test_autoguidance_undoes_what_a_weaker_model_smooths(x64):
    """Of N(0, s^2) a model that believes in a wider spread: scale 2 of two that err in ratio 2."""
    schedule, t = EDM(), jnp.asarray(0.5)
    spreads = {
        error: Gaussian(np.zeros(1), np.array([[0.25 + error]])).predict(schedule)
        for error in (0.0, 0.001, 0.002)
    }
    x = jnp.array([[0.7]])
    got = guidance.autoguidance(spreads[0.001], spreads[0.002], 2.0)(x, t)
    exact, strong = spreads[0.0](x, t), spreads[0.001](x, t)
    assert jnp.abs(got.x0 - exact.x0) < 0.01 * jnp.abs(strong.x0 - exact.x0)


# The interval.


def test_interval_is_exact_at_both_ends():
    scale = guidance.interval(3.0, 0.3, 0.7)
    low, high = np.float32(0.3), np.float32(0.7)
    t = np.array([np.nextafter(low, 0), low, 0.5, high, np.nextafter(high, 1)], np.float32)
    for at in (scale, jax.jit(scale)):
        np.testing.assert_array_equal(at(t), [1, 3, 3, 3, 1])
        assert [float(at(jnp.asarray(each))) for each in t] == [1, 3, 3, 3, 1]


def test_interval_of_scales_per_sample():
    scale = guidance.interval(jnp.array([2.0, 3.0]), 0.3, 0.7)
    np.testing.assert_array_equal(scale(jnp.array([0.5, 0.9])), [2, 1])
    np.testing.assert_array_equal(scale(jnp.asarray(0.5)), [2, 3])
    x, labels = jnp.ones((2, 2)), jnp.array([0, 1])
    one, two = (
        guidance.classifier_free(simple(VPLinear()), labels, NULL, s)(x, 0.5)
        for s in (scale, jnp.array([2.0, 3.0]))
    )
    chex.assert_trees_all_equal(one, two)


# Thresholding.


def constant(x0, schedule):
    """A prediction that says ``x0`` whatever the state, and the noise that belongs to it."""

    def predict(x, t):
        alpha, sigma = (expand(f(t), x) for f in (schedule.alpha, schedule.sigma))
        return Prediction(x0, (x - alpha * x0) / sigma, x0)

    return predict


LIMITS = {"static": guidance.threshold, "dynamic": guidance.dynamic_threshold}
each_limit = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)


@each_limit
def test_what_is_in_range_stays_to_the_bit(limit):
    schedule = VPLinear()
    x, t = example(schedule)
    x0 = jnp.linspace(-1, 1, 10).reshape(5, 2)
    plain = constant(x0, schedule)
    chex.assert_trees_all_equal(limit(plain, schedule)(x, t), plain(x, t))


@each_limit
@each_schedule
def test_thresholded_predictions_are_in_range_and_consistent(limit, schedule, x64):
    x, t = example(schedule)
    x0 = 3 * jax.random.normal(jax.random.key(1), x.shape)
    got = limit(constant(x0, schedule), schedule)(x, t)
    assert jnp.abs(got.x0).max() <= 1
    consistent(schedule, x, t, got)
    np.testing.assert_array_equal(got.variance, x0)


def test_static_threshold_clips():
    schedule = EDM()
    x0 = jnp.array([[-2.0, 0.25], [0.75, 0.5]])
    got = guidance.threshold(constant(x0, schedule), schedule, 0.0, 0.5)(jnp.ones((2, 2)), 2.0)
    np.testing.assert_array_equal(got.x0, [[0.0, 0.25], [0.5, 0.5]])
    np.testing.assert_array_equal(got.eps, [[0.5, 0.375], [0.25, 0.25]])


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_as_numpy_computes_it(quantile, x64):
    schedule = VPLinear()
    x0 = (
        np.random.default_rng(0).normal(size=(4, 3, 5, 2))
        * np.array([0.3, 1, 2, 5])[:, None, None, None]
    )
    t = jnp.array([0.2, 0.4, 0.6, 0.8])
    predict = guidance.dynamic_threshold(constant(jnp.asarray(x0), schedule), schedule, quantile)
    got = predict(jnp.ones_like(x0), t)
    for i in range(4):
        s = max(np.quantile(np.abs(x0[i]), quantile), 1.0)
        np.testing.assert_allclose(got.x0[i], np.clip(x0[i], -s, s) / s, rtol=1e-12)


# What all of them owe.

MODIFIERS = {
    "autoguidance": lambda predict, schedule: guidance.autoguidance(
        predict,
        lambda x, t: jax.tree.map(lambda leaf: 0.9 * leaf, predict(x, t)),
        3.0,
        combine=guidance.rescaled(schedule),
    ),
    "classifier": lambda predict, schedule: guidance.classifier(
        predict, schedule, lambda x, t: jnp.sin(x).sum(-1) * t, 2.0
    ),
    "classifier_free": lambda predict, schedule: guidance.classifier_free(
        lambda x, t, labels: jax.tree.map(lambda leaf: leaf * (1 + labels[0]), predict(x, t)),
        jnp.ones(5, int),
        0,
        3.0,
        doubled_batch=False,
    ),
    "dynamic_threshold": lambda predict, schedule: guidance.dynamic_threshold(
        predict, schedule, 0.5, floor=0.1
    ),
    "threshold": lambda predict, schedule: guidance.threshold(predict, schedule, -0.8, 0.8),
}
each = pytest.mark.parametrize("modify", MODIFIERS.values(), ids=MODIFIERS)


def unlabelled(schedule):
    return lambda x, t: simple(schedule)(x, t, 0)


@each
def test_scalar_time_is_per_sample_time(modify):
    schedule = VPLinear()
    x, _ = example(schedule)
    predict = modify(unlabelled(schedule), schedule)
    chex.assert_trees_all_close(predict(x, 0.3), predict(x, jnp.full(5, 0.3)), rtol=1e-5, atol=1e-6)


@each
def test_compiles_maps_and_differentiates(modify):
    schedule = VPLinear()
    x, t = example(schedule)
    predict = modify(unlabelled(schedule), schedule)
    eager = predict(x, t)
    chex.assert_trees_all_close(jax.jit(predict)(x, t), eager, rtol=1e-4, atol=1e-5)
    mapped = jax.jit(jax.vmap(predict))(jnp.stack([x, 2 * x]), jnp.stack([t, t]))
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[0], mapped), eager, rtol=1e-4, atol=1e-5
    )
    gradients = jax.jit(jax.grad(lambda x, t: predict(x, t).eps.sum(), argnums=(0, 1)))
    for gradient in gradients(x, t):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype(modify, dtype, x64):
    schedule = VPLinear()
    x, t = (v.astype(dtype) for v in example(schedule))
    got = modify(unlabelled(schedule), schedule)(x, t)
    assert got.x0.dtype == got.eps.dtype == dtype


def test_gradient_with_respect_to_the_scale():
    schedule = VPLinear()
    x, t = example(schedule)
    got = jax.grad(lambda s: cfg(schedule, s)(x, t).x0.sum())(2.0)
    ends = [cfg(schedule, s)(x, t).x0.sum() for s in (0.0, 1.0)]
    np.testing.assert_allclose(got, ends[1] - ends[0], rtol=1e-4)


def test_declared_evaluations_multiply_and_reach_the_solution():
    schedule, single = VPLinear(), unlabelled(VPLinear())
    x, _ = example(schedule)
    assert [evaluations(m(single, schedule)) for m in MODIFIERS.values()] == [2, 1, 2, 1, 1]
    thrice = with_evaluations(single, 3)
    one_call = [MODIFIERS[name] for name in ("classifier", "dynamic_threshold", "threshold")]
    assert [evaluations(m(thrice, schedule)) for m in one_call] == [3, 3, 3]
    guided = cfg(schedule, 2.0)
    for modify in one_call:
        guided = modify(guided, schedule)
    assert evaluations(guided) == 2
    assert solvers.run(solvers.recipe("heun", schedule, 7), guided, x).nfe == 14
    expensive = simple(schedule)
    expensive.evaluations = 5
    assert evaluations(guidance.classifier_free(expensive, LABELS, NULL, 2.0)) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s: guidance.interval(2.0, 0.5, 0.5), "t_low 0.5 must be below t_high 0.5"),
        (lambda p, s: guidance.interval(2.0, float("nan"), 1.0), "t_low nan must be below"),
        (lambda p, s: guidance.rescaled(s, 1.5), r"share must lie in \[0, 1\], got 1.5"),
        (lambda p, s: guidance.threshold(p, s, 1.0, -1.0), "low 1.0 must be below high -1.0"),
        (
            lambda p, s: guidance.dynamic_threshold(p, s, 0.0),
            r"quantile must lie in \(0, 1\], got 0",
        ),
        (lambda p, s: guidance.dynamic_threshold(p, s, 1.5), "quantile must lie in .* got 1.5"),
        (lambda p, s: guidance.dynamic_threshold(p, s, floor=0.0), "floor must be positive, got 0"),
        (
            lambda p, s: cfg(s, jnp.ones(3))(jnp.ones((5, 2)), 0.5),
            r"shape \(3,\) does not fit",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call(unlabelled(VPLinear()), VPLinear())
