"""What every solver owes: a row in the table, and all of this holds."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import Prediction
from diffjax.schedules import EDM, Cosine, Discrete, FlowMatching, SubVP, VPLinear, expand, perturb
from diffjax.solvers import solve, timesteps


class Row(NamedTuple):
    """A solver and what is promised of it."""

    make: object
    order: int | None = None  # order of convergence, for ODE solvers
    exact_on_a_point: bool = True  # every ODE solver whose linear part is exact
    noisy: bool = False
    reaches_zero: bool = True  # a step to sigma = 0 lands on x0
    bias: float = 0.02  # of the standard deviation, after 400 steps


TABLE = {
    "ancestral_small": Row(lambda s: solvers.ancestral(s, "small"), noisy=True),
    "ancestral_large": Row(lambda s: solvers.ancestral(s, "large"), noisy=True),
    "ancestral_learned": Row(lambda s: solvers.ancestral(s, "learned"), noisy=True),
    "ddim": Row(solvers.ddim, order=1),
    "ddim_eta": Row(lambda s: solvers.ddim(s, 0.6), noisy=True),
    "dpm_solver_2m": Row(lambda s: solvers.multistep(s, "eps"), order=2),
    "dpm_solver_2s": Row(lambda s: solvers.singlestep(s, "eps"), order=2, reaches_zero=False),
    "dpm_solver_pp_2m": Row(solvers.multistep, order=2),
    "dpm_solver_pp_2s": Row(solvers.singlestep, order=2, reaches_zero=False),
    "dpm_solver_pp_2s_r": Row(lambda s: solvers.singlestep(s, r1=0.3), order=2, reaches_zero=False),
    "euler": Row(solvers.euler, order=1, exact_on_a_point=False, reaches_zero=False),
    "heun": Row(solvers.heun, order=2, reaches_zero=False),
    "heun_stochastic": Row(
        lambda s: solvers.heun_stochastic(s, gamma=0.1), noisy=True, reaches_zero=False
    ),
    "euler_maruyama": Row(solvers.euler_maruyama, noisy=True, reaches_zero=False),
    "reverse_diffusion": Row(solvers.reverse_diffusion, noisy=True, reaches_zero=False),
    "probability_flow": Row(
        solvers.probability_flow, order=1, exact_on_a_point=False, reaches_zero=False, bias=0.08
    ),
    "predictor_corrector": Row(
        lambda s: solvers.predictor_corrector(
            solvers.multistep(s), solvers.annealed_langevin(s, steps=2)
        ),
        noisy=True,
        reaches_zero=False,
    ),
}
SCHEDULES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(1000),
}
MIXTURE = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
)

each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
each_ode = pytest.mark.parametrize(
    "row",
    [row for row in TABLE.values() if not row.noisy],
    ids=[name for name, row in TABLE.items() if not row.noisy],
)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def exact(schedule):
    """The mixture's prediction, with a learned variance in the middle of its range."""
    predict = MIXTURE.predict(schedule)
    return lambda x, t: predict(x, t)._replace(variance=jnp.full_like(x, 0.5))


def start(schedule, n=6, dtype=jnp.float32):
    noise = jax.random.normal(jax.random.key(7), (n, 2), dtype)
    return (schedule.sigma(schedule.t_max) * noise).astype(dtype)


@each
def test_under_jit_in_one_trace_as_without(row):
    schedule, key = VPLinear(), jax.random.key(0)
    traces = []

    def run(x, ts, key):
        def predict(x, t):
            traces.append(1)
            return exact(schedule)(x, t)

        return solve(row.make(schedule), predict, x, ts, key)

    x, ts = start(schedule), timesteps.log_snr(schedule, 7)
    eager = run(x, ts, key)
    per_trace = len(traces)
    jitted = jax.jit(run)
    first = jitted(x, ts, key)
    traced = len(traces)
    jitted(2 * x, ts * 0.99, jax.random.key(1))
    assert len(traces) == traced, "a second call with other values must not trace again"
    assert per_trace == row.make(schedule).evaluations, "the network is traced once a call"
    chex.assert_trees_all_close(first.x, eager.x, rtol=1e-4, atol=1e-5)


@each
def test_nfe_is_the_number_of_calls_made(row):
    schedule, steps = VPLinear(), 5
    calls = []

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(schedule)(x, t)

    solution = solve(
        row.make(schedule),
        predict,
        start(schedule),
        timesteps.log_snr(schedule, steps),
        jax.random.key(0),
    )
    jax.block_until_ready(solution.x)
    jax.effects_barrier()
    assert solution.nfe == len(calls) == steps * row.make(schedule).evaluations


@each
def test_per_sample_times_are_scalar_times(row):
    """The same grid for every sample, and grids of their own, against one sample at a time."""
    schedule = VPLinear()
    solver, predict, x = row.make(schedule), exact(schedule), start(schedule, 3)
    keys = jax.random.split(jax.random.key(1), 3)
    run = jax.jit(lambda x, ts, key: solve(solver, predict, x, ts, key).x)
    ends = [schedule.t_min, 2 * schedule.t_min, 3 * schedule.t_min]
    grids = [timesteps.log_snr(schedule, 4, t_end=end) for end in ends]
    together = run(x, jnp.stack(grids, axis=1), keys)
    alone = jnp.concatenate([run(x[i : i + 1], grids[i], keys[i : i + 1]) for i in range(3)])
    chex.assert_trees_all_close(together, alone, rtol=2e-3, atol=2e-3)
    shared = run(x, grids[0], keys)
    repeated = run(x, jnp.stack([grids[0]] * 3, axis=1), keys)
    chex.assert_trees_all_close(shared, repeated, rtol=2e-3, atol=2e-3)


@each
def test_vmap_over_runs(row):
    schedule = VPLinear()
    x = jnp.stack([start(schedule), 0.5 * start(schedule)])
    keys = jax.random.split(jax.random.key(2), 2)
    ts = timesteps.log_snr(schedule, 3)

    def run(x, key):
        return solve(row.make(schedule), exact(schedule), x, ts, key).x

    together = jax.jit(jax.vmap(run))(x, keys)
    single = jax.jit(run)
    alone = jnp.stack([single(x[i], keys[i]) for i in range(2)])
    # Three steps are few: what rounding there is grows a thousandfold on the way.
    chex.assert_trees_all_close(together, alone, rtol=2e-3, atol=2e-3)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_keeps_the_dtype_of_the_state(row, dtype, x64):
    schedule = VPLinear()
    ts = timesteps.log_snr(schedule, 2)
    solution = solve(
        row.make(schedule), exact(schedule), start(schedule, dtype=dtype), ts, jax.random.key(0)
    )
    assert solution.x.dtype == dtype and jnp.isfinite(solution.x).all()


@each
def test_gradients_are_finite(row):
    schedule = VPLinear()
    ts = timesteps.log_snr(schedule, 3)

    def loss(x, ts):
        solution = solve(row.make(schedule), exact(schedule), x, ts, jax.random.key(0))
        return jnp.square(solution.x).sum()

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(start(schedule), ts):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@each
def test_visits_exactly_the_times_given(row):
    schedule, visited = VPLinear(), []

    def predict(x, t):
        jax.debug.callback(lambda t: visited.append(float(t)), t)
        return exact(schedule)(x, t)

    ts = jnp.array([1.0, 0.61, 0.6, 0.2, 0.03])
    solver = row.make(schedule)
    jax.block_until_ready(solve(solver, predict, start(schedule), ts, jax.random.key(0)).x)
    jax.effects_barrier()
    if row.noisy and solver.evaluations == 2:  # churn moves to a noisier time of its own first
        visited = [t for t in visited if min(abs(t - np.asarray(ts))) < 1e-7]
        assert set(np.float32(visited)) >= set(np.asarray(ts[1:]))
    else:
        assert set(np.float32(visited)) >= set(np.asarray(ts[:-1]))


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE.values() if row.reaches_zero],
    ids=[name for name, row in TABLE.items() if row.reaches_zero],
)
@each_schedule
def test_ends_at_no_noise(row, schedule):
    """A grid may end at t = 0, the data itself; what is left is x0 at the last time but one."""
    ts = jnp.append(timesteps.log_snr(schedule, 5), 0.0)
    solution = jax.jit(
        lambda x: solve(
            row.make(schedule), exact(schedule), x, ts, jax.random.key(0), trajectory=True
        )
    )(start(schedule))
    x0 = exact(schedule)(solution.trajectory[-2], ts[-2]).x0
    chex.assert_trees_all_close(solution.x, x0, rtol=1e-4, atol=1e-4)


@each_schedule
@pytest.mark.parametrize(
    "row",
    [r for r in TABLE.values() if r.exact_on_a_point and not r.noisy],
    ids=[n for n, r in TABLE.items() if r.exact_on_a_point and not r.noisy],
)
def test_exact_on_a_point_mass(row, schedule, x64):
    """For x_t = alpha c + sigma z with z held, any step lands on alpha c + sigma z."""
    point = np.array([0.7, -1.2])
    predict = analytic.point_mass(point).predict(schedule)
    z = jax.random.normal(jax.random.key(0), (4, 2))
    t_end = schedule.t_min
    x = perturb(schedule, jnp.broadcast_to(point, z.shape), schedule.t_max, z)
    ts = timesteps.log_snr(schedule, 3)
    end = solve(row.make(schedule), predict, x, ts).x
    chex.assert_trees_all_close(
        end, perturb(schedule, jnp.broadcast_to(point, z.shape), t_end, z), rtol=1e-8, atol=1e-8
    )


@functools.cache
def converged(schedule):
    """The answer to compare with: thirty times as many steps of second order."""
    solver, x = solvers.singlestep(schedule), start(schedule, 16, jnp.float64)
    run = jax.jit(lambda ts: solve(solver, exact(schedule), x, ts).x)
    return run(timesteps.log_snr(schedule, 6000))


@each_ode
@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=["vp", "edm"])
def test_order_of_convergence(row, schedule, x64):
    """Slope of the error against the step on a mixture, from a tenfold finer reference."""
    predict, x = exact(schedule), start(schedule, 16, jnp.float64)
    # Euler's own linear error is large where alpha varies fast: it needs finer grids to show.
    steps = (96, 192) if row.exact_on_a_point else (800, 1600)
    run = jax.jit(lambda ts: solve(row.make(schedule), predict, x, ts).x)
    reference = converged(schedule)
    errors = [
        float(jnp.sqrt(jnp.mean((run(timesteps.log_snr(schedule, n)) - reference) ** 2)))
        for n in steps
    ]
    assert np.log2(errors[0] / errors[1]) > row.order - 0.15


@each
def test_moments_of_a_gaussian(row):
    """With many steps, samples of N(0, 0.5^2) have its mean and variance."""
    schedule, std = VPLinear(), 0.5
    gaussian = analytic.Mixture(np.zeros((1, 1)), std).predict(schedule)

    def predict(x, t):
        # The exact reverse variance of this Gaussian lies between the two learned ends.
        return gaussian(x, t)._replace(variance=jnp.full_like(x, 0.5))

    n, steps = 20_000, 400
    x = schedule.sigma(1.0) * jax.random.normal(jax.random.key(0), (n, 1))
    ts = timesteps.log_snr(schedule, steps)
    end = solve(row.make(schedule), predict, x, ts, jax.random.key(1)).x
    assert abs(float(end.mean())) < 4 * std / np.sqrt(n) + 1e-3
    assert abs(float(end.std()) / std - 1) < 4 / np.sqrt(2 * n) + row.bias


@pytest.mark.parametrize(
    "row", [r for r in TABLE.values() if r.noisy], ids=[n for n, r in TABLE.items() if r.noisy]
)
def test_noise_is_by_key_and_by_sample(row):
    schedule = VPLinear()
    solver, predict, x = row.make(schedule), exact(schedule), start(schedule)
    run = jax.jit(lambda x, key: solve(solver, predict, x, timesteps.log_snr(schedule, 4), key).x)
    keys = jax.random.split(jax.random.key(3), x.shape[0])
    whole = run(x, keys)
    chex.assert_trees_all_equal(whole, run(x, keys))
    assert (whole != run(x, jax.random.split(jax.random.key(4), x.shape[0]))).any()
    parts = jnp.concatenate([run(x[:3], keys[:3]), run(x[3:], keys[3:])])
    chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_a_solver_of_ones_own_is_one_step():
    """The README's promise: guidance, per-sample times and nfe come for free."""

    def step(predict, x, span, key):
        eps = predict(x, span.t).eps
        return x + expand(span.t_next - span.t, x) * eps

    own, schedule = solvers.one_step(step), EDM()
    ts, x = timesteps.karras(schedule, 10), start(EDM())
    got = solve(own, exact(schedule), x, ts)
    chex.assert_trees_all_close(
        got.x, solve(solvers.ddim(schedule), exact(schedule), x, ts).x, rtol=1e-4, atol=1e-4
    )
    assert got.nfe == 10 and isinstance(exact(schedule)(x, ts[0]), Prediction)
