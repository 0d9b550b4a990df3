"""Ancestral forms against k-diffusion's formulas by hand, and DDIM with noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.random import fold_in, normal
from diffjax.schedules import EDM, VPLinear
from diffjax.solvers import ancestral_form, solve, timesteps

LEVELS = np.array([20.0, 5.0, 1.0, 0.3])
PREDICT = analytic.Mixture(np.eye(2), 0.3).predict(EDM())


def by_hand(move, x, key, eta, inflation):
    """``move(x, level, down)`` below each next level, then noise up to it."""
    for i, (level, after) in enumerate(itertools.pairwise(LEVELS)):
        up = min(after, eta * np.sqrt(after**2 * (level**2 - after**2) / level**2))
        x = move(x, level, np.sqrt(after**2 - up**2))
        x = x + inflation * up * normal(fold_in(key, jnp.int32(i)), x.shape, x.dtype)
    return x


def euler(x, level, down):
    return x + (x - PREDICT(x, level).x0) / level * (down - level)


def dpm2(x, level, down):
    middle = np.sqrt(level * down)
    x_middle = euler(x, level, middle)
    return x + (x_middle - PREDICT(x_middle, middle).x0) / middle * (down - level)


def dpm_pp_2s(x, level, down):
    middle = np.sqrt(level * down)
    x_middle = middle / level * x + (1 - middle / level) * PREDICT(x, level).x0
    return down / level * x + (1 - down / level) * PREDICT(x_middle, middle).x0


@pytest.mark.parametrize(
    ("name", "move"),
    [
        ("euler_ancestral", euler),
        ("dpm2_ancestral", dpm2),
        ("dpm_solver_pp_2s_ancestral", dpm_pp_2s),
    ],
)
@pytest.mark.parametrize(
    "options", [dict(), dict(eta=0.6, inflation=1.1)], ids=["plain", "options"]
)
def test_by_hand(name, move, options, x64):
    x, key = 20.0 * jax.random.normal(jax.random.key(0), (3, 2)), jax.random.key(1)
    solver = solvers.SOLVERS[name](EDM(), **options)
    got = solve(solver, PREDICT, x, jnp.asarray(LEVELS), key).x
    expected = by_hand(move, x, key, options.get("eta", 1.0), options.get("inflation", 1.0))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_of_ddim_is_ddim_with_noise(x64):
    """On a schedule whose alpha moves, times by sample, and a last step without noise."""
    schedule = VPLinear()
    predict, x = analytic.Mixture(np.eye(2), 0.3).predict(schedule), jnp.ones((2, 2))
    ends = (timesteps.log_snr(schedule, 5, t_end=end) for end in (1e-3, 0.1))
    ts = jnp.concatenate([jnp.stack(list(ends), axis=1), jnp.zeros((1, 2))])
    solution = [
        solve(solver, predict, x, ts, jax.random.key(0)).x
        for solver in (
            ancestral_form(schedule, solvers.ddim(schedule), 0.7),
            solvers.ddim(schedule, 0.7),
        )
    ]
    np.testing.assert_allclose(*solution, rtol=1e-8)


def test_eta_zero_is_the_solver(x64):
    schedule = VPLinear()
    predict, x = analytic.Mixture(np.eye(2), 0.3).predict(schedule), jnp.ones((2, 2))
    solver, ts = solvers.singlestep(schedule), timesteps.log_snr(schedule, 4)
    noisy = solve(ancestral_form(schedule, solver, 0.0), predict, x, ts, jax.random.key(0)).x
    np.testing.assert_allclose(noisy, solve(solver, predict, x, ts).x, rtol=1e-10)
