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
from diffjax.schedules import (
    EDM,
    Cosine,
    Discrete,
    FlowMatching,
    SubVP,
    VPLinear,
    expand,
    half_log_snr,
    perturb,
)
from diffjax.solvers import solve, timesteps
from diffjax.solvers.unipc import unipc


class Row(NamedTuple):
    """A solver and what is promised of it."""

    make: object
    order: float | None = None  # of convergence, as it shows at 192 steps, for ODE solvers
    exact_on_a_point: bool = True  # every ODE solver whose linear part is exact
    noisy: bool = False
    reaches_zero: bool = True  # a step to sigma = 0 lands on x0
    bias: float = 0.02  # of the standard deviation, after 400 steps
    variant: bool = False  # of another row: with other weights in what is the same program


def curves(schedule):
    """Statistics for DPM-Solver-v3 that leave nothing out: all three, none of them constant."""
    ends = half_log_snr(schedule, jnp.array([schedule.t_max, schedule.t_min]))
    lam = jnp.linspace(*ends, 201)
    l = 1 / (1 + 0.25 * jnp.exp(2 * lam))  # noqa: E741
    of_pixels = (l, -0.3 * jax.nn.sigmoid(lam), 0.1 * jnp.tanh(lam))
    return solvers.Statistics(lam, *(curve[:, None] for curve in of_pixels))


def options(make, **preset):
    return functools.partial(make, **preset)


multistep, singlestep, sde = solvers.multistep, solvers.singlestep, solvers.sde_multistep
TABLE = {
    "ancestral_small": Row(lambda s: solvers.ancestral(s, "small"), noisy=True),
    "ancestral_large": Row(lambda s: solvers.ancestral(s, "large"), noisy=True, variant=True),
    "ancestral_learned": Row(lambda s: solvers.ancestral(s, "learned"), noisy=True, variant=True),
    "ancestral_form": Row(
        lambda s: solvers.ancestral_form(s, singlestep(s, "eps"), 0.7),
        noisy=True,
        reaches_zero=False,
    ),
    "ddim": Row(solvers.ddim, order=1),
    "ddim_eta": Row(lambda s: solvers.ddim(s, 0.6), noisy=True),
    "deis_t": Row(solvers.deis, order=2.9),
    "deis_rho": Row(options(solvers.deis, order=2, variable="rho"), order=2, variant=True),
    "deis_log_rho": Row(options(solvers.deis, variable="log_rho"), order=3, variant=True),
    "dpm_solver_2m": Row(options(multistep, expansion="eps"), order=2),
    "dpm_solver_2s": Row(options(singlestep, expansion="eps"), order=2, reaches_zero=False),
    "dpm_solver_3m": Row(options(multistep, expansion="eps", order=3), order=2, variant=True),
    "dpm_solver_3s": Row(
        options(singlestep, expansion="eps", order=3, solver_type="taylor"),
        order=3,
        reaches_zero=False,
        variant=True,
    ),
    "dpm_solver_pp_2m": Row(multistep, order=2),
    "dpm_solver_pp_2m_taylor": Row(options(multistep, solver_type="taylor"), order=2, variant=True),
    "dpm_solver_pp_2s": Row(singlestep, order=2, reaches_zero=False),
    "dpm_solver_pp_2s_r": Row(
        options(singlestep, r1=0.3), order=2, reaches_zero=False, variant=True
    ),
    "dpm_solver_pp_3m": Row(options(multistep, order=3), order=2, variant=True),
    "dpm_solver_pp_3m_doubled": Row(
        options(multistep, order=3, halved_curvature=False), order=3, variant=True
    ),
    "dpm_solver_pp_3s": Row(
        options(singlestep, order=3), order=3, reaches_zero=False, variant=True
    ),
    "dpm_solver_pp_4m": Row(
        options(multistep, order=4, lower_order_final=False),
        order=3.8,
        reaches_zero=False,
        variant=True,
    ),
    "dpm_solver_v3": Row(
        lambda s: solvers.dpm_solver_v3(s, curves(s), lower_order_final=False),
        order=4,
        exact_on_a_point=False,
        reaches_zero=False,
    ),
    "euler": Row(solvers.euler, order=1, exact_on_a_point=False, reaches_zero=False),
    "heun": Row(solvers.heun, order=2, reaches_zero=False),
    "heun_stochastic": Row(
        lambda s: solvers.heun_stochastic(s, gamma=0.1), noisy=True, reaches_zero=False
    ),
    "euler_maruyama": Row(solvers.euler_maruyama, noisy=True, reaches_zero=False),
    "ipndm": Row(solvers.ipndm, order=2, reaches_zero=False),
    "lms": Row(solvers.lms, order=3.8, reaches_zero=False, variant=True),
    "pseudo_runge_kutta": Row(solvers.pseudo_runge_kutta, order=2, reaches_zero=False),
    "reverse_diffusion": Row(solvers.reverse_diffusion, noisy=True, reaches_zero=False),
    "probability_flow": Row(
        solvers.probability_flow, order=1, exact_on_a_point=False, reaches_zero=False, bias=0.08
    ),
    "predictor_corrector": Row(
        lambda s: solvers.predictor_corrector(multistep(s), solvers.annealed_langevin(s, steps=2)),
        noisy=True,
        reaches_zero=False,
    ),
    "sde_dpm_solver_2m": Row(options(sde, expansion="eps"), noisy=True, reaches_zero=False),
    "sde_dpm_solver_pp_1": Row(options(sde, order=1), noisy=True, variant=True),
    "sde_dpm_solver_pp_2m": Row(sde, noisy=True),
    "unip_3": Row(options(unipc, corrector=False), order=3, variant=True),
    "unipc_1": Row(options(unipc, order=1, variant="bh1"), order=2, variant=True),
    "unipc_2": Row(options(unipc, order=2), order=3, variant=True),
    # Low orders at the end would show: the orders are those of runs without them.
    "unipc_3": Row(options(unipc, lower_order_final=False), order=3.8, reaches_zero=False),
    "unipc_3_eps": Row(
        options(unipc, expansion="eps", variant="vary_coeff", lower_order_final=False),
        order=3.7,
        reaches_zero=False,
        variant=True,
    ),
    "unipc_4": Row(
        options(unipc, order=4, lower_order_final=False),
        order=4.9,
        reaches_zero=False,
        variant=True,
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
OF_VARIANTS = ("vp", "discrete")


def each_schedule(holds):
    """A case for each row of which something holds and each schedule; variants take a few."""
    return pytest.mark.parametrize(
        ("row", "schedule"),
        [
            pytest.param(row, schedule, id=f"{name}-{kind}")
            for name, row in TABLE.items()
            if holds(row)
            for kind, schedule in SCHEDULES.items()
            if kind in OF_VARIANTS or not row.variant
        ],
    )


def exact(schedule):
    """The mixture's prediction, with a learned variance in the middle of its range."""
    predict = MIXTURE.predict(schedule)
    return lambda x, t: predict(x, t)._replace(variance=jnp.full_like(x, 0.5))


def start(schedule, n=6, dtype=jnp.float32):
    noise = jax.random.normal(jax.random.key(7), (n, 2), dtype)
    return (schedule.sigma(schedule.t_max) * noise).astype(dtype)


@each
def test_calls_under_jit_and_without(row):
    """Visits the times given, counts its calls, traces the network once a call and never again."""
    schedule, key = VPLinear(), jax.random.key(0)
    solver, traces, visited = row.make(schedule), [], []

    def run(x, ts, key):
        def predict(x, t):
            traces.append(1)
            jax.debug.callback(lambda t: visited.append(float(t)), t)
            return exact(schedule)(x, t)

        solution = solve(solver, predict, x, ts, key)
        nfe.append(solution.nfe)
        return solution.x

    x, ts, nfe = start(schedule), jnp.array([1.0, 0.61, 0.6, 0.2, 0.03]), []
    jitted = jax.jit(run)
    first = jax.block_until_ready((jitted if row.variant else run)(x, ts, key))
    jax.effects_barrier()
    assert len(traces) == solver.evaluations, "the network is traced once a call"
    assert nfe[0] == len(visited) == 4 * solver.evaluations
    if row.make is TABLE["heun_stochastic"].make:  # churn moves to a noisier time of its own first
        assert set(np.float32(visited)) >= set(np.asarray(ts[1:]))
    else:
        assert set(np.float32(visited)) >= set(np.asarray(ts[:-1]))

    again, traced = jitted(x, ts, key), len(traces)
    jitted(2 * x, ts * 0.99, jax.random.key(1))
    assert len(traces) == traced, "a second call with other values must not trace again"
    chex.assert_trees_all_close(again, first, rtol=1e-4, atol=1e-5)


@each
def test_per_sample_times_are_runs_of_their_own(row):
    """A batch on grids of its own against runs of single samples, which are mapped over."""
    schedule = VPLinear()
    solver, predict, x = row.make(schedule), exact(schedule), start(schedule, 3)
    keys = jax.random.split(jax.random.key(1), 3)
    run = lambda x, ts, key: solve(solver, predict, x, ts, key).x  # noqa: E731
    ends = [schedule.t_min, 2 * schedule.t_min, 3 * schedule.t_min]
    grids = jnp.stack([timesteps.log_snr(schedule, 4, t_end=end) for end in ends])
    together = jax.jit(run)(x, grids.T, keys)
    alone = jax.jit(jax.vmap(run))(x[:, None], grids, keys[:, None])
    # Few steps: what rounding there is grows a thousandfold on the way.
    chex.assert_trees_all_close(together, alone[:, 0], rtol=2e-3, atol=2e-3)


@each
def test_keeps_the_dtype_of_the_state(row, x64):
    schedule = VPLinear()
    solver, ts = row.make(schedule), timesteps.log_snr(schedule, 2)
    run = lambda x: solve(solver, exact(schedule), x, ts, jax.random.key(0)).x  # noqa: E731
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        x = start(schedule, dtype=dtype)
        assert jax.eval_shape(run, x).dtype == dtype
        if dtype == jnp.bfloat16 and not row.variant:
            assert jnp.isfinite(jax.jit(run)(x)).all()


@each
def test_gradients_are_finite(row):
    schedule = VPLinear()
    ts = timesteps.log_snr(schedule, 3)

    def loss(x, ts):
        solution = solve(row.make(schedule), exact(schedule), x, ts, jax.random.key(0))
        return jnp.square(solution.x).sum()

    # Through the times it goes by the weights, of which variants have no others; it is slow to
    # compile.
    argnums = (0,) if row.variant else (0, 1)
    for gradient in jax.jit(jax.grad(loss, argnums))(start(schedule), ts):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@each_schedule(lambda row: row.reaches_zero)
def test_ends_at_no_noise(row, schedule):
    """A grid may end at t = 0, the data itself; what is left is x0 at the last time but one."""
    ts = jnp.append(timesteps.log_snr(schedule, 5), 0.0)

    @jax.jit
    def run(x):
        solution = solve(
            row.make(schedule), exact(schedule), x, ts, jax.random.key(0), trajectory=True
        )
        return solution.x, exact(schedule)(solution.trajectory[-2], ts[-2]).x0

    end, x0 = run(start(schedule))
    chex.assert_trees_all_close(end, x0, rtol=1e-4, atol=1e-4)


@each_schedule(lambda row: row.exact_on_a_point and not row.noisy)
def test_exact_on_a_point_mass(row, schedule, x64):
    """For x_t = alpha c + sigma z with z held, any step lands on alpha c + sigma z."""
    point = np.array([0.7, -1.2])
    predict = analytic.point_mass(point).predict(schedule)
    z = jax.random.normal(jax.random.key(0), (4, 2))
    t_end = schedule.t_min
    x = perturb(schedule, jnp.broadcast_to(point, z.shape), schedule.t_max, z)
    ts = timesteps.log_snr(schedule, 5)
    end = jax.jit(lambda x: solve(row.make(schedule), predict, x, ts).x)(x)
    chex.assert_trees_all_close(
        end, perturb(schedule, jnp.broadcast_to(point, z.shape), t_end, z), rtol=1e-8, atol=1e-8
    )


@functools.cache
def converged(schedule):
    """The answer to compare with: many steps of third order."""
    solver, x = solvers.singlestep(schedule, order=3), start(schedule, 16, jnp.float64)
    run = jax.jit(lambda ts: solve(solver, exact(schedule), x, ts).x)
    return run(timesteps.log_snr(schedule, 3000))


@pytest.mark.parametrize(
    ("row", "schedule"),
    [
        pytest.param(row, schedule, id=f"{name}-{kind}")
        for name, row in TABLE.items()
        if row.order
        for kind, schedule in (("vp", SCHEDULES["vp"]), ("edm", SCHEDULES["edm"]))
        if kind == "vp" or not row.variant
    ],
)
def test_order_of_convergence(row, schedule, x64):
    """Slope of the error against the step on a mixture, from a much finer reference."""
    predict, x = exact(schedule), start(schedule, 16, jnp.float64)
    # Euler's own linear error is large where alpha varies fast: it needs finer grids to show.
    steps = (800, 1600) if row.order == 1 and not row.exact_on_a_point else (192, 384)
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
    run = jax.jit(lambda x, key: solve(row.make(schedule), predict, x, ts, key).x)
    end = run(x, jax.random.key(1))
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
