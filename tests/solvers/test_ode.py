"""The ODE to a tolerance: exact ends, round trips, counted evaluations, steps by sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import with_evaluations
from diffjax.schedules import EDM, VE, Cosine, Discrete, FlowMatching, SubVP, VPLinear
from diffjax.solvers import encode, solve_ode, spherical
from diffjax.solvers.ode import METHODS

SCHEDULES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "cosine": Cosine(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(100),
}
MIXTURE = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
def test_exact_on_a_gaussian(schedule, x64):
    """x_t stays at its quantile: x_t = x_T s_t / s_T with s_t^2 = (alpha c)^2 + sigma^2."""
    std = 0.5
    predict = analytic.Mixture(np.zeros((1, 3)), std).predict(schedule)

    def spread(t):
        return jnp.hypot(schedule.alpha(t) * std, schedule.sigma(t))

    start = spread(schedule.t_max) * jax.random.normal(jax.random.key(0), (4, 3))
    middle = schedule.t_min + 0.3 * (schedule.t_max - schedule.t_min)
    run = jax.jit(lambda x: solve_ode(schedule, predict, x, at=jnp.array([middle])))
    got = run(start)
    for x, t in ((got.x, schedule.t_min), (got.trajectory[0], middle)):
        np.testing.assert_allclose(x, start * spread(t) / spread(schedule.t_max), atol=2e-4)


@each_schedule
def test_encoding_is_undone(schedule):
    x, predict = MIXTURE.sample(jax.random.key(0), 6), MIXTURE.predict(schedule)
    back = jax.jit(lambda x: solve_ode(schedule, predict, encode(schedule, predict, x).x).x)(x)
    np.testing.assert_allclose(back, x, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_methods_agree(method, per_sample, x64):
    schedule = VPLinear()
    x, predict = jax.random.normal(jax.random.key(0), (4, 2)), MIXTURE.predict(schedule)
    got = jax.jit(lambda x: solve_ode(schedule, predict, x, method=method, per_sample=per_sample))(
        x
    )
    reference = solve_ode(schedule, predict, x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.x, reference.x, atol=2e-4)
    assert got.nfe.shape == ((4,) if per_sample else ())


def test_error_follows_the_tolerance(x64):
    schedule = VPLinear()
    x, predict = jax.random.normal(jax.random.key(0), (4, 2)), MIXTURE.predict(schedule)
    run = jax.jit(lambda tolerance: solve_ode(schedule, predict, x, rtol=tolerance, atol=tolerance))
    reference = run(1e-10).x
    loose, tight = run(1e-4), run(1e-7)
    errors = [float(jnp.abs(got.x - reference).max()) for got in (loose, tight)]
    assert errors[1] < 1e-5 and errors[1] < errors[0] / 50 and loose.nfe < tight.nfe


@pytest.mark.parametrize("method", ["tsit5", "dopri5"])
@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=["vp", "edm"])
def test_nfe_is_the_number_of_evaluations_made(method, schedule):
    exact, calls = MIXTURE.predict(schedule), []

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    x = MIXTURE.sample(jax.random.key(0), 4)
    solution = encode(schedule, with_evaluations(predict, 2), x, method=method)
    jax.block_until_ready(solution.x)
    jax.effects_barrier()
    assert solution.nfe == 2 * len(calls)


def test_steps_by_sample_are_those_of_the_sample_alone(x64):
    schedule = VPLinear()
    x, predict = jax.random.normal(jax.random.key(0), (5, 2)), MIXTURE.predict(schedule)
    at = jnp.array([0.7, 0.2])
    together = solve_ode(schedule, predict, x, at=at, per_sample=True)
    assert together.trajectory.shape == (2, 5, 2)
    for i in range(5):
        alone = solve_ode(schedule, predict, x[i : i + 1], at=at)
        assert alone.nfe == together.nfe[i]
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-4)
        np.testing.assert_allclose(together.trajectory[:, i], alone.trajectory[:, 0], atol=1e-4)


def test_the_worst_sample_decides():
    """In one batch every sample is as exact as by itself."""
    schedule = VPLinear()
    x, predict = jax.random.normal(jax.random.key(0), (50, 2)), MIXTURE.predict(schedule)
    together = solve_ode(schedule, predict, x)
    own = solve_ode(schedule, predict, x, per_sample=True)
    assert together.nfe >= own.nfe.max() - 12 and together.nfe > own.nfe.mean()


def test_not_reached_is_not_a_number():
    schedule = VPLinear()
    broken = lambda x, t: analytic.point_mass(jnp.zeros(2)).predict(schedule)(x * jnp.nan, t)  # noqa: E731
    assert jnp.isnan(solve_ode(schedule, broken, jnp.ones((2, 2))).x).all()


def test_gradients():
    """Of the end with respect to the start: for a Gaussian the ratio of its spreads."""
    schedule, std = VPLinear(), 0.5
    predict = analytic.Mixture(np.zeros((1, 1)), std).predict(schedule)
    slope = jax.grad(lambda x: solve_ode(schedule, predict, x).x.sum())(jnp.ones((2, 1)))
    spreads = [jnp.hypot(schedule.alpha(t) * std, schedule.sigma(t)) for t in (1e-3, 1.0)]
    np.testing.assert_allclose(slope, spreads[0] / spreads[1], rtol=1e-3)


def test_spherical_interpolation(x64):
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    b = (
        b
        * jnp.linalg.norm(a, axis=(1, 2), keepdims=True)
        / jnp.linalg.norm(b, axis=(1, 2), keepdims=True)
    )
    np.testing.assert_allclose(spherical(a, b, 0.0), a, atol=1e-12)
    np.testing.assert_allclose(spherical(a, b, 1.0), b, atol=1e-12)
    between = spherical(a, b, jnp.array([0.2, 0.5, 0.9]))
    norms = [jnp.linalg.norm(x, axis=(1, 2)) for x in (a, between)]
    np.testing.assert_allclose(*norms, rtol=1e-12)
    cosine = jnp.sum(a * b, axis=(1, 2)) / norms[0] ** 2
    moved = jnp.sum(a * between, axis=(1, 2)) / norms[0] ** 2
    share = jnp.arccos(moved) / jnp.arccos(cosine)
    np.testing.assert_allclose(share, [0.2, 0.5, 0.9], rtol=1e-9)
    # Straight where there is no arc: along one line, to the same place or to its opposite.
    np.testing.assert_allclose(spherical(a, a, 0.3), a, rtol=1e-6)
    np.testing.assert_allclose(spherical(a, -a, 0.25), a / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="euler"), "unknown ODE method 'euler': choose one of dopri5, kvaerno5, tsit5"),
        (dict(t_start=jnp.ones(2)), "two scalar times"),
    ],
)
def test_mistakes(options, message):
    schedule = VPLinear()
    with pytest.raises(ValueError, match=message):
        solve_ode(schedule, MIXTURE.predict(schedule), jnp.zeros((2, 2)), **options)
    assert solvers.solve_ode is solve_ode
