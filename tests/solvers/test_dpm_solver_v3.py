"""DPM-Solver-v3: the solvers it contains, its statistics in closed form, its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import Prediction
from diffjax.schedules import VPLinear, half_log_snr
from diffjax.solvers import Statistics, dpm_solver_v3, solve, statistics, timesteps
from diffjax.solvers.dpm_solver_v3 import _collocation, _pseudo_weights
from diffjax.solvers.exponential import weights
from diffjax.solvers.unipc import unipc

SCHEDULE = VPLinear()
MIXTURE = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
)
GAUSSIAN = analytic.Mixture(np.array([[0.7, -0.4]]), 0.5)


def constant(l, s, b):  # noqa: E741
    lam = half_log_snr(SCHEDULE, jnp.array([SCHEDULE.t_max, SCHEDULE.t_min]))
    return Statistics(lam, *(jnp.full((2, 1), value) for value in (l, s, b)))


def start(n=4):
    return jax.random.normal(jax.random.key(0), (n, 2))


@pytest.mark.parametrize(
    ("curves", "expansion"), [((1.0, 0.0, 0.0), "x0"), ((0.0, -1.0, 0.0), "eps")], ids=["x0", "eps"]
)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_contains_the_exponential_integrators(curves, expansion, order, x64):
    """Both expansions with exact weights; with its corrector UniPC with varying coefficients."""
    ts = timesteps.karras(SCHEDULE, 6)
    pairs = [
        (
            dpm_solver_v3(SCHEDULE, constant(*curves), order=order, corrector=False),
            solvers.multistep(
                SCHEDULE, expansion, order=order, solver_type="taylor", halved_curvature=False
            ),
        ),
        (
            dpm_solver_v3(SCHEDULE, constant(*curves), order=order),
            unipc(SCHEDULE, expansion, order=order, variant="vary_coeff"),
        ),
    ]
    predict = MIXTURE.predict(SCHEDULE)
    for pair in pairs[: 2 if order == 3 else 1]:
        own, known = jax.jit(
            lambda x, pair=pair: [solve(solver, predict, x, ts).x for solver in pair]
        )(start())
        np.testing.assert_allclose(own, known, rtol=1e-11, atol=1e-12)


def test_b_is_integrated(x64):
    """f' = b exactly, as f = b lambda + c: one first-order step is the exact solution."""
    slope, offset = 0.3, -0.2

    def predict(x, t):
        # l = 0, so f = e^{-lambda} eps and y' = -f.
        lam = half_log_snr(SCHEDULE, t)
        eps = jnp.exp(lam) * (slope * lam + offset)
        return Prediction(x, jnp.broadcast_to(eps, x.shape))

    ts = jnp.array([SCHEDULE.t_max, SCHEDULE.t_min])
    x = start()
    end = solve(dpm_solver_v3(SCHEDULE, constant(0.0, 0.0, slope), order=1), predict, x, ts).x
    low, high = half_log_snr(SCHEDULE, ts)
    y = x / SCHEDULE.alpha(1.0) - (slope * (high**2 - low**2) / 2 + offset * (high - low))
    np.testing.assert_allclose(end, SCHEDULE.alpha(ts[1]) * y, rtol=1e-10)


@functools.cache
def of_the_gaussian():
    """In closed form: ``l = 1 / (1 + c^2 e^{2 lam})``; ``f = -l mean`` is known, so ``s`` is 0."""
    with jax.enable_x64(True):
        x0 = GAUSSIAN.sample(jax.random.key(1), 8)
        fitted = jax.jit(
            lambda key: statistics(
                GAUSSIAN.predict(SCHEDULE), SCHEDULE, x0, key, points=241, batch_size=4
            )
        )(jax.random.key(0))
        l = 1 / (1 + 0.25 * jnp.exp(2 * fitted.lam))[:, None]  # noqa: E741
        closed = Statistics(fitted.lam, l, 0 * l, 2 * l * (1 - l) * np.array([0.7, -0.4]))
        return fitted, closed


def test_statistics_of_a_gaussian(x64):
    fitted, closed = of_the_gaussian()
    assert fitted.l.shape == fitted.s.shape == fitted.b.shape == (241, 2)
    ends = half_log_snr(SCHEDULE, jnp.array([SCHEDULE.t_max, SCHEDULE.t_min]))
    np.testing.assert_allclose(fitted.lam, jnp.linspace(*ends, 241), rtol=1e-12)
    np.testing.assert_allclose(fitted.l, np.broadcast_to(closed.l, (241, 2)), atol=1e-12)
    np.testing.assert_array_equal(fitted.s, 0)
    # The slope of l is by differences.
    np.testing.assert_allclose(fitted.b, closed.b, atol=1e-3)


def test_a_gaussian_takes_one_step(x64):
    """What the curves know needs no network calls in between: exact but for the curves' points."""
    ts = jnp.array([SCHEDULE.t_max, SCHEDULE.t_min])
    spread = [jnp.hypot(0.5 * SCHEDULE.alpha(t), SCHEDULE.sigma(t)) for t in ts]
    mean = np.array([0.7, -0.4])
    x = start()
    exact = (
        SCHEDULE.alpha(ts[1]) * mean + (x - SCHEDULE.alpha(ts[0]) * mean) * spread[1] / spread[0]
    )
    predict = GAUSSIAN.predict(SCHEDULE)
    errors = [
        float(jnp.abs(solve(solver, predict, x, ts).x - exact).max())
        for solver in (
            *(dpm_solver_v3(SCHEDULE, curves, order=1) for curves in of_the_gaussian()),
            solvers.ddim(SCHEDULE),
        )
    ]
    assert max(errors[:2]) < 3e-3 < 0.5 < errors[2]


def test_fewer_errors_at_few_calls(x64):
    """On the mixture with statistics of its own: below DPM-Solver++ of third order, and UniPC."""
    predict, x = MIXTURE.predict(SCHEDULE), start(64)
    x0 = MIXTURE.sample(jax.random.key(1), 128)
    fitted = jax.jit(lambda key: statistics(predict, SCHEDULE, x0, key, points=41))(
        jax.random.key(0)
    )
    fine = solvers.singlestep(SCHEDULE)
    reference = jax.jit(lambda x: solve(fine, predict, x, timesteps.log_snr(SCHEDULE, 800)).x)(x)
    ts = timesteps.log_snr(SCHEDULE, 8)
    errors = [
        float(jnp.sqrt(jnp.mean((solve(solver, predict, x, ts).x - reference) ** 2)))
        for solver in (
            dpm_solver_v3(SCHEDULE, fitted),
            solvers.multistep(SCHEDULE, order=3),
            unipc(SCHEDULE),
        )
    ]
    assert errors[0] < 0.5 * min(errors[1:])


def test_pseudo_order(x64):
    """Of second order both are one; of third the pseudo one bends by the newest two alone."""
    nodes = [jnp.zeros(()), jnp.asarray(-0.8), jnp.asarray(-1.9)]
    moments = [jnp.asarray(m) for m in (1.0, 0.55, 0.4)]
    np.testing.assert_allclose(
        _pseudo_weights(nodes[:2], moments[:2]), weights(nodes[:2], moments[:2]), rtol=1e-12
    )
    # On m = 1 + u + u^2 the first difference is 0.2, not the slope 1; the second is exact.
    values = [1 + u + u**2 for u in nodes]
    got = sum(w * v for w, v in zip(_pseudo_weights(nodes, moments), values, strict=True))
    np.testing.assert_allclose(got, 1.0 + 0.55 * (1 - 0.8) + 0.4, rtol=1e-12)
    exact = sum(w * v for w, v in zip(weights(nodes, moments), values, strict=True))
    np.testing.assert_allclose(exact, 1.0 + 0.55 + 0.4, rtol=1e-12)


def test_collocation_is_exact_for_polynomials():
    nodes, mass, up_to = _collocation()
    for power in (0, 3, 15):
        np.testing.assert_allclose(mass @ nodes**power, 1 / (power + 1), rtol=1e-12)
        np.testing.assert_allclose(
            up_to @ nodes**power, nodes ** (power + 1) / (power + 1), rtol=1e-9, atol=1e-14
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpm_solver_v3(SCHEDULE, constant(1.0, 0, 0), order=5), "order must be 1, 2, 3 or"),
        (
            lambda: dpm_solver_v3(SCHEDULE, constant(1.0, 0, 0)._replace(lam=jnp.zeros(3))),
            "does not fit curves of 2 points",
        ),
        (
            lambda: solve(
                dpm_solver_v3(
                    SCHEDULE, Statistics(jnp.arange(2.0), *(jnp.ones((2, 2)) for _ in "lsb"))
                ),
                MIXTURE.predict(SCHEDULE),
                jnp.zeros((6, 1)),
                jnp.array([1.0, 0.5]),
            ),
            r"statistics of data of shape \(2,\) do not fit x of shape \(6, 1\)",
        ),
        (
            lambda: statistics(
                MIXTURE.predict(SCHEDULE), SCHEDULE, jnp.zeros((6, 2)), jax.random.key(0), points=1
            ),
            "at least 2 points",
        ),
        (
            lambda: statistics(
                MIXTURE.predict(SCHEDULE),
                SCHEDULE,
                jnp.zeros((6, 2)),
                jax.random.key(0),
                batch_size=4,
            ),
            "batch_size=4 must divide the 6 samples",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
