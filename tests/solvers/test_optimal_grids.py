"""AYS against its closed form on a Gaussian and brute force; DMN against the usual grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.schedules import EDM, VPLinear, half_log_snr, prior
from diffjax.solvers import Recipe, optimal_grids, run, timesteps

C = 0.5
GAUSSIAN = analytic.Mixture(np.zeros((1, 2)), C)


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()], ids=["edm", "vp"])
def test_klub_of_a_gaussian_is_the_closed_form(schedule, x64):
    """E|D(x_s) - D(x_b)|^2 = d (C^4/(C^2 + s^2) - C^4/(C^2 + b^2)), integrated over s."""
    ts = timesteps.log_snr(schedule, 60, t_start=0.6 * schedule.t_max)[::-1]
    x0 = GAUSSIAN.sample(jax.random.key(0), 40_000)
    got = np.asarray(
        optimal_grids.klub(GAUSSIAN.predict(schedule), schedule, ts, x0, jax.random.key(1))
    )
    noise = np.exp(-np.asarray(half_log_snr(schedule, ts)))
    for a, b in ((0, 20), (10, 40), (30, 60), (0, 60)):
        s = np.geomspace(noise[a], noise[b], 20_001)
        power = 2 * (C**4 / (C**2 + s**2) - C**4 / (C**2 + noise[b] ** 2))
        expected = np.trapezoid(2 * s**-3 * power, s)
        np.testing.assert_allclose(got[a, b], expected, rtol=0.05)
    assert np.isinf(got[5, 5]) and np.isinf(got[6, 5])


def test_ays_finds_the_least_of_all_grids():
    schedule, points, steps = EDM(), 9, 3
    x0, key = GAUSSIAN.sample(jax.random.key(0), 64), jax.random.key(1)
    predict = GAUSSIAN.predict(schedule)
    got = optimal_grids.align_your_steps(predict, schedule, steps, x0=x0, key=key, points=points)
    fine = timesteps.log_snr(schedule, points - 1)[::-1]
    costs = np.asarray(optimal_grids.klub(predict, schedule, fine, x0, key))
    grids = [(0, *inner, points - 1) for inner in itertools.combinations(range(1, points - 1), 2)]
    best = min(grids, key=lambda grid: sum(costs[a, b] for a, b in itertools.pairwise(grid)))
    np.testing.assert_array_equal(got, fine[np.asarray(best[::-1])])
    with pytest.raises(ValueError, match="points=3 must exceed steps=3"):
        optimal_grids.align_your_steps(predict, schedule, steps, x0=x0, key=key, points=3)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_dmn_is_a_grid_of_a_smaller_bound(steps):
    schedule = VPLinear()
    ts = optimal_grids.dmn(schedule, steps)
    usual = timesteps.log_snr(schedule, steps)
    assert ts.shape == (steps + 1,) and (jnp.diff(ts) < 0).all()
    assert ts[0] == usual[0] and ts[-1] == usual[-1]
    bounds = [float(optimal_grids.dmn_bound(schedule, grid)) for grid in (ts, usual)]
    assert bounds[0] <= bounds[1] * (1 + 1e-5) and (steps < 6 or bounds[0] < 0.8 * bounds[1])


def test_dmn_beats_equal_steps_on_a_mixture():
    schedule, angles = VPLinear(), np.arange(8) * np.pi / 4
    mixture = analytic.Mixture(np.stack([np.cos(angles), np.sin(angles)], -1), 0.15)
    predict, x = mixture.predict(schedule), prior(schedule, 1.0, (2000, 2), jax.random.key(0))
    solver = solvers.multistep(schedule, order=3)
    end = jax.jit(lambda ts: run(Recipe(solver, ts, denoise=True), predict, x).x)
    exact = end(timesteps.log_snr(schedule, 300))

    def error(ts):
        return float(jnp.sqrt(jnp.mean((end(ts) - exact) ** 2)))

    assert error(optimal_grids.dmn(schedule, 6)) < error(timesteps.log_snr(schedule, 6))
