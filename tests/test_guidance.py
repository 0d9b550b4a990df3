"""Guidance and thresholding, against exact scores, published figures and their definitions."""

import itertools
from statistics import NormalDist

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import guidance, solvers
from diffjax.analytic import Gaussian, Mixture
from diffjax.prediction import Prediction, evaluations, from_x0, with_evaluations
from diffjax.schedules import EDM, Discrete, VPLinear, expand
from diffjax.solvers import timesteps
from diffjax.solvers.transition import transition

# Two classes of two components each; the last row weighs all of them, for "no label".
MEANS = np.array([[-1.0, 0.5], [-1.5, -0.5], [1.0, 0.2], [0.3, 1.4]])
STD = np.array([0.3, 0.5, 0.4, 0.2])
JOINT = np.log([0.1, 0.3, 0.2, 0.4])
LOG_WEIGHTS = np.where([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], JOINT, -np.inf)
NULL = 2
LABELS = np.array([0, 1, 1, 0, 2])
SCHEDULES = {"vp": VPLinear(), "edm": EDM()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def mixture(label):
    return Mixture(MEANS, STD, LOG_WEIGHTS[label])


def exact(schedule):
    """The mixture's ``(x, t, labels) -> Prediction``."""

    def single(x, t, label):
        found = Mixture(MEANS, STD, jnp.asarray(LOG_WEIGHTS)[label]).predict(schedule)(x[None], t)
        return jax.tree.map(lambda leaf: leaf[0], found)

    return lambda x, t, labels: jax.vmap(single)(x, jnp.broadcast_to(t, x.shape[:1]), labels)


def log_posterior(schedule, label):
    """The mixture's exact classifier ``log p(y | x_t)``."""
    log_prior = jax.nn.logsumexp(jnp.asarray(LOG_WEIGHTS[label]))

    def log_probability(x, t):
        given, whole = (mixture(y).log_density(schedule, x, t) for y in (label, NULL))
        return log_prior + given - whole

    return log_probability


def simple(schedule):
    """A cheap ``(x, t, labels) -> Prediction`` that depends on all its arguments."""

    def predict(x, t, labels):
        x0 = jnp.tanh(2 * x + expand(labels, x))
        return from_x0(schedule, x, t, x0)._replace(variance=x0**2)

    return predict


def example(schedule):
    t = jnp.linspace(0.1, 0.9, 5)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    return x * jnp.sqrt(1 + expand(schedule.sigma(t), x) ** 2), t


def cfg(schedule, scale, **options):
    return guidance.classifier_free(simple(schedule), jnp.asarray(LABELS), NULL, scale, **options)


def consistent(schedule, x, t, prediction):
    alpha, sigma = (expand(f(t), x) for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-9)


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


# Published figures: a pair of Gaussians, p(x|c) = N(1, 0.25) and p(x) = N(0, 1.25).

WIDE = EDM(t_min=1e-4, t_max=1e4)


def guided_pair(scale):
    pair = [
        Gaussian(np.array([m]), np.array([[v]])).predict(WIDE) for m, v in ((1, 0.25), (0, 1.25))
    ]

    def predict(x, t, labels):
        choose = labels[:, None] == 0
        return jax.tree.map(lambda a, b: jnp.where(choose, a, b), *(p(x, t) for p in pair))

    return guidance.classifier_free(predict, jnp.zeros(2, int), 1, scale)


def moments(run):
    """Mean and standard deviation at the end: the map of a linear ODE is affine."""
    above, below = WIDE.t_max * jnp.array([[1.0], [-1.0]])
    ends = run(jnp.stack([above, below]))[:, 0]
    return (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(1, 1.0, 0.5), (1.5, 1.2099, 0.3344), (2, 1.3228, 0.2236), (3, 1.4, 0.1), (4, 1.3968, 0.0447)],
)
def test_the_guided_ode_of_two_gaussians(scale, mean, std, x64):
    ts = timesteps.log_snr(WIDE, 1000)
    run = jax.jit(lambda x: solvers.solve(solvers.heun(WIDE), guided_pair(scale), x, ts).x)
    np.testing.assert_allclose(moments(run), (mean, std), atol=5e-4)


@pytest.mark.parametrize(
    ("low", "high", "mean", "std"),
    [(0.2, 2, 1.3427, 0.0732), (0.5, 1, 1.2296, 0.2324), (1, 10, 1.5605, 0.2101)],
)
def test_the_same_guided_in_an_interval(low, high, mean, std, x64):
    """Three solves, the outer two plain, are exact; one with the interval, nearly so."""
    solver = solvers.heun(WIDE)
    ends = (WIDE.t_max, high, low, WIDE.t_min)
    grids = [timesteps.log_snr(WIDE, 400, t_start=a, t_end=b) for a, b in itertools.pairwise(ends)]

    def parts(x):
        for ts, scale in zip(grids, (1.0, 4.0, 1.0), strict=True):
            x = solvers.solve(solver, guided_pair(scale), x, ts).x
        return x

    def whole(x):
        ts = timesteps.log_snr(WIDE, 3000)
        return solvers.solve(solver, guided_pair(guidance.interval(4.0, low, high)), x, ts).x

    np.testing.assert_allclose(moments(jax.jit(parts)), (mean, std), atol=5e-4)
    np.testing.assert_allclose(moments(jax.jit(whole)), (mean, std), atol=0.01)


# Classifier guidance.


@each_schedule
@pytest.mark.parametrize("label", [0, 1])
def test_an_exact_classifier_makes_the_prediction_conditional(schedule, label, x64):
    x, t = example(schedule)
    unconditional = mixture(NULL).predict(schedule)
    guided = guidance.classifier(unconditional, schedule, log_posterior(schedule, label))
    conditional = mixture(label).predict(schedule)
    chex.assert_trees_all_close(
        jax.jit(guided)(x, t), jax.jit(conditional)(x, t), rtol=1e-8, atol=1e-8
    )


def test_classifier_guidance_is_classifier_free_guidance_with_the_implicit_classifier(x64):
    schedule = VPLinear()
    x, t = example(schedule)
    scales = jnp.array([0.0, 0.5, 1.0, 2.0, 7.0])
    unconditional = mixture(NULL).predict(schedule)
    one = guidance.classifier(unconditional, schedule, log_posterior(schedule, 1), scales)
    two = guidance.classifier_free(exact(schedule), jnp.ones(5, int), NULL, scales)
    chex.assert_trees_all_close(jax.jit(one)(x, t), jax.jit(two)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(0.0, 0.0, 1.117), (1.0, 0.997, 0.499), (2.0, 1.320, 0.358), (4.0, 1.674, 0.289)],
)
def test_guided_ddim_of_two_classes(scale, mean, std):
    """Half N(-1, 0.25), half N(1, 0.25), guided to the second, by 1000 steps of DDIM."""
    chain = Discrete.linear(1000)
    both = Mixture(np.array([[-1.0], [1.0]]), 0.5)
    second = Mixture(np.array([[1.0]]), 0.5)

    def log_probability(x, t):
        return second.log_density(chain, x, t) - both.log_density(chain, x, t)

    predict = guidance.classifier(both.predict(chain), chain, log_probability, scale)
    recipe = solvers.recipe("ddim", chain, 1000, grid="uniform")
    # The ODE keeps the order of samples, so quantiles of the start stand for all draws.
    n = 2001
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    ends = jax.jit(lambda x: solvers.run(recipe, predict, x).x)(jnp.asarray(quantiles)[:, None])
    np.testing.assert_allclose((ends.mean(), ends.std()), (mean, std), atol=3e-3)


def test_classifier_guidance_of_a_linear_log_probability_shifts_the_noise():
    """log p = b x: eps moves by -s sigma b, sample by sample, and the variance stays."""
    schedule, slope = VPLinear(), jnp.array([1.0, -2.0])
    x, t = example(schedule)
    scales = jnp.arange(5.0)

    def predict(x, t):
        return simple(schedule)(x, t, LABELS)

    plain = predict(x, t)
    got = guidance.classifier(predict, schedule, lambda x, t: x @ slope, scales)(x, t)
    expected = plain.eps - (scales * schedule.sigma(t))[:, None] * slope
    np.testing.assert_allclose(got.eps, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.eps[0], plain.eps[0])
    np.testing.assert_array_equal(got.variance, plain.variance)


def test_the_guided_chain_moves_its_mean_by_variance_and_gradient(x64):
    schedule, key = Discrete.linear(1000), jax.random.key(0)
    x, slope = jax.random.normal(key, (3, 2)), jnp.array([1.0, -2.0])
    predict = mixture(NULL).predict(schedule)
    ts = jnp.array([0.5, 0.4])
    ends = [
        solvers.solve(
            solvers.ancestral(schedule, variance, gradient=gradient), predict, x, ts, key
        ).x
        for variance in ("small", "large")
        for gradient in (None, lambda x, t: 3 * jnp.broadcast_to(slope, x.shape))
    ]
    over = transition(schedule, solvers.Span(ts[0], ts[1], 0, 1), x)
    for plain, guided, moved in (
        (*ends[:2], over.small_variance),
        (*ends[2:], over.large_variance),
    ):
        np.testing.assert_allclose(guided - plain, 3 * moved * jnp.broadcast_to(slope, x.shape))


@pytest.mark.parametrize(
    ("scale", "mean", "std"), [(1.0, 0.998, 0.500), (2.0, 1.166, 0.440), (4.0, 1.285, 0.429)]
)
def test_guided_ancestral_sampling_of_two_classes(scale, mean, std):
    """The same two classes by the chain of 1000 steps with its large variances."""
    chain, n = Discrete.linear(1000), 20_000
    both, second = Mixture(np.array([[-1.0], [1.0]]), 0.5), Mixture(np.array([[1.0]]), 0.5)

    def gradient(x, t):
        def log_probability(x):
            return (second.log_density(chain, x, t) - both.log_density(chain, x, t)).sum()

        return scale * jax.grad(log_probability)(x)

    recipe = solvers.recipe(
        "ancestral", chain, 1000, grid="uniform", variance="large", gradient=gradient
    )
    x = jax.random.normal(jax.random.key(0), (n, 1))
    ends = jax.jit(lambda x: solvers.run(recipe, both.predict(chain), x, jax.random.key(1)).x)(x)
    np.testing.assert_allclose((ends.mean(), ends.std()), (mean, std), atol=4 * std / np.sqrt(n))


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
