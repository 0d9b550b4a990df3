"""Explicit Runge-Kutta methods of fixed steps: their order, and what a tableau must be."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.schedules import EDM, VPLinear
from diffjax.solvers import solve, timesteps

MIXTURE = analytic.Mixture(np.array([[0.5, 0.0], [-0.5, 0.3]]), 0.4)


def errors(make, schedule, steps):
    x = schedule.sigma(0.9) * jax.random.normal(jax.random.key(0), (8, 2))
    predict = MIXTURE.predict(schedule)
    exact = solvers.solve_ode(schedule, predict, x, t_start=0.9, rtol=1e-11, atol=1e-11).x
    found = []
    for count in steps:
        ts = timesteps.log_snr(schedule, count, t_start=0.9)
        found.append(float(jnp.abs(solve(make(schedule), predict, x, ts).x - exact).max()))
    return np.asarray(found)


def test_dormand_prince_is_of_fifth_order(x64):
    schedule = VPLinear()
    found = errors(solvers.dormand_prince, schedule, (12, 24))
    assert np.log2(found[0] / found[1]) > 4.5
    assert found[1] < 1e-4
    assert solvers.dormand_prince(schedule).evaluations == 6


def test_the_simplest_tableau_is_euler_in_log_sigma(x64):
    schedule = EDM(0.05, 3.0)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    ts, predict = timesteps.log_snr(schedule, 5), MIXTURE.predict(schedule)
    y = x
    for t, t_next in itertools.pairwise(ts):
        y = y + jnp.log(t_next / t) * t * predict(y, t).eps
    euler = solvers.runge_kutta(schedule, ((),), (1.0,))
    np.testing.assert_allclose(solve(euler, predict, x, ts).x, y, rtol=1e-10)


@pytest.mark.parametrize("stages, weights", [(((), (1.0,)), (1.0,)), (((),), (0.5,))])
def test_what_is_no_tableau(stages, weights):
    with pytest.raises(ValueError, match="row i of the tableau needs i entries"):
        solvers.runge_kutta(EDM(), stages, weights)
