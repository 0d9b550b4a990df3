"""Grids against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.schedules import EDM, VE, Cosine, Discrete, FlowMatching, VPLinear, half_log_snr
from diffjax.solvers import timesteps

SCHEDULES = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(1000),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("grid", timesteps.GRIDS.values(), ids=timesteps.GRIDS)
def test_every_grid(grid, schedule):
    for steps in (1, 2, 17, 200):
        ts = grid(schedule, steps)
        chex.assert_shape(ts, (steps + 1,))
        assert (jnp.diff(ts) < 0).all(), "strictly decreasing"
        assert ts[0] == np.float32(schedule.t_max) and ts[-1] == np.float32(schedule.t_min)
    t_start = 0.5 * (schedule.t_min + schedule.t_max)
    part = jax.jit(lambda t: grid(schedule, 4, t_start=t, t_end=2 * schedule.t_min))(t_start)
    chex.assert_trees_all_close(part[0], t_start, rtol=1e-6)
    chex.assert_trees_all_close(part[-1], 2 * schedule.t_min, rtol=1e-6)


def test_spacings(x64):
    schedule = VPLinear()
    np.testing.assert_allclose(np.diff(timesteps.uniform(schedule, 9)), -0.999 / 9)
    np.testing.assert_allclose(
        np.diff(np.diff(np.sqrt(timesteps.quadratic(schedule, 9)))), 0, atol=1e-12
    )
    gaps = np.diff(half_log_snr(schedule, timesteps.log_snr(schedule, 9)))
    np.testing.assert_allclose(gaps, gaps[0])


def test_karras_values(x64):
    expected = [
        80,
        57.586,
        40.786,
        28.375,
        19.352,
        12.910,
        8.4009,
        5.3152,
        3.2568,
        1.9233,
        1.0882,
        0.5853,
        0.2964,
        0.1395,
        0.0599,
        0.0229,
        0.0075,
        0.002,
    ]
    np.testing.assert_allclose(timesteps.karras(EDM(), 17), expected, rtol=1e-2, atol=5e-5)
    np.testing.assert_allclose(timesteps.karras(EDM(), 17)[:11], expected[:11], rtol=4e-5)
    # On another schedule the same noise levels are visited, at its own times.
    schedule = VPLinear()
    noise = schedule.sigma(timesteps.karras(schedule, 5)) / schedule.alpha(
        timesteps.karras(schedule, 5)
    )
    np.testing.assert_allclose(np.diff(np.diff(noise ** (1 / 7))), 0, atol=1e-9)


def test_respaced_times_carry_the_chains_own_indices():
    chain = Discrete.linear(1000)
    ts = timesteps.respaced(chain, [250])
    np.testing.assert_allclose(
        chain.index(ts)[::-1], np.round(np.arange(250) * 999 / 249), atol=1e-3
    )
    assert (jnp.diff(ts) < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timesteps.uniform(EDM(), 0), "at least 1 step, got 0"),
        (lambda: timesteps.respaced(EDM(), "ddim10"), "EDM is not a chain; use Discrete"),
        (lambda: timesteps.respaced(Discrete.linear(100), "ddim37"), "no whole stride takes 37"),
        (lambda: timesteps.respaced(Discrete.linear(100), [101]), "cannot take 101 of a section"),
        (lambda: timesteps.respaced(Discrete.linear(100), [0, 5]), "cannot take 0 of a section"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
