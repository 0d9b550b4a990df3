"""SDE-DPM-Solver: its formulas, exactness in distribution, and convergence along a path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.schedules import VPLinear, half_log_snr
from diffjax.solvers import brownian_path, sde_multistep, solve, timesteps

SCHEDULE = VPLinear()
GAUSSIAN = analytic.Mixture(np.array([[0.4, -0.3]]), 0.5).predict(SCHEDULE)


def scales(ts):
    return SCHEDULE.alpha(ts), SCHEDULE.sigma(ts), half_log_snr(SCHEDULE, ts)


@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("expansion", ["x0", "eps"])
def test_weights_are_the_published_ones(expansion, solver_type, x64):
    ts = jnp.array([0.9, 0.6, 0.4, 0.1])
    plan = sde_multistep(
        SCHEDULE, expansion, solver_type=solver_type, lower_order_final=False
    ).plan(ts)
    alpha, sigma, lam = scales(ts)
    h = lam[1:] - lam[:-1]
    if expansion == "x0":
        state = sigma[1:] / sigma[:-1] * jnp.exp(-h)
        first = alpha[1:] * (1 - jnp.exp(-2 * h))
        slope = first / 2
        if solver_type == "taylor":
            slope = alpha[1:] * (1 - (1 - jnp.exp(-2 * h)) / (2 * h))
        noise = sigma[1:] * jnp.sqrt(1 - jnp.exp(-2 * h))
    else:
        state = alpha[1:] / alpha[:-1]
        first = -2 * sigma[1:] * jnp.expm1(h)
        slope = first / 2
        if solver_type == "taylor":
            slope = -2 * sigma[1:] * (jnp.expm1(h) / h - 1)
        noise = sigma[1:] * jnp.sqrt(jnp.expm1(2 * h))
    ratio = h[:-1] / h[1:]  # r_0 of every step but the first, which is of first order
    older = jnp.concatenate([jnp.zeros(1), -slope[1:] / ratio])
    np.testing.assert_allclose(plan.weights.state, state, rtol=1e-12)
    np.testing.assert_allclose(plan.noise, noise, rtol=1e-11)
    np.testing.assert_allclose(plan.weights.values[1], older, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(plan.weights.values[0], first - older, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_a_point_mass_stays_one(order, x64):
    """From N(alpha_s c, sigma_s^2) exactly to N(alpha_t c, sigma_t^2), whatever the steps."""
    ts = timesteps.uniform(SCHEDULE, 5)
    alpha, sigma, _ = scales(ts)
    plan = sde_multistep(SCHEDULE, order=order).plan(ts)
    variance = (plan.weights.state * sigma[:-1]) ** 2 + plan.noise**2
    np.testing.assert_allclose(variance, sigma[1:] ** 2, rtol=1e-12)
    mean = plan.weights.state * alpha[:-1] + sum(plan.weights.values)
    np.testing.assert_allclose(mean, alpha[1:], rtol=1e-12)


def test_first_order_is_ancestral_sampling(x64):
    ts, x, key = timesteps.log_snr(SCHEDULE, 6), jnp.ones((3, 2)), jax.random.key(0)
    ends = [
        solve(solver, GAUSSIAN, x, ts, key).x
        for solver in (
            sde_multistep(SCHEDULE, order=1),
            solvers.ancestral(SCHEDULE),
            solvers.ddim(SCHEDULE, 1.0),
        )
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)
    np.testing.assert_allclose(ends[0], ends[2], rtol=1e-9)


@functools.cache
def along_one_path(expansion, order):
    """Errors at 8, 16 and 32 steps against 256, all with the noise of one Brownian path."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (16, 2))
        ends = dict(t_start=0.6, t_end=0.05)
        path = brownian_path(
            SCHEDULE, jax.random.key(1), x.shape, expansion=expansion, tolerance=1e-5, **ends
        )
        solver = sde_multistep(SCHEDULE, expansion, order=order, path=path)
        run = jax.jit(lambda ts: solve(solver, GAUSSIAN, x, ts).x)
        fine, *coarse = (
            run(timesteps.log_snr(SCHEDULE, steps, **ends)) for steps in (256, 8, 16, 32)
        )
        return [float(jnp.sqrt(jnp.mean((end - fine) ** 2))) for end in coarse]


@pytest.mark.parametrize("expansion", ["x0", "eps"])
def test_strong_convergence(expansion):
    """Towards one solution of the SDE as the grid is refined, with strong order 1."""
    errors = along_one_path(expansion, 2)
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (slopes > 0.8).all(), (errors, slopes)
    # Without the path each grid has noise of its own, and nothing to converge to.
    assert errors[-1] < 0.03


def test_a_path_adds_up(x64):
    """Increments over the parts of a step sum to that over the whole, with its variance."""
    shape = (2000, 1)
    path = brownian_path(SCHEDULE, jax.random.key(0), shape)
    from diffjax.solvers.sde_dpm_solver import clocks

    clock = clocks(SCHEDULE, "x0", jnp.array([0.5, 0.3, 0.1]))
    whole, first, second = jax.jit(
        lambda c: (path(c[0], c[2]), path(c[0], c[1]), path(c[1], c[2]))
    )(clock)
    np.testing.assert_allclose(first + second, whole, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.var() / (clock[2] - clock[0]), 1.0, atol=0.15)
    assert abs(float(jnp.corrcoef(first[:, 0], second[:, 0])[0, 1])) < 0.1
