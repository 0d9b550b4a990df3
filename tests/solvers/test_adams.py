"""DEIS, LMS, iPNDM and PNDM against their definitions, by other means of integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from diffjax import analytic, solvers
from diffjax.schedules import EDM, VPLinear
from diffjax.solvers import solve, timesteps

RING = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
)


def lagrange(nodes, j, at):
    others = [node for i, node in enumerate(nodes) if i != j]
    return np.prod([(at - other) / (nodes[j] - other) for other in others])


def test_lms_is_k_diffusions(x64):
    """Coefficients by adaptive quadrature of Lagrange polynomials in the noise level."""
    levels = np.array([10.0, 6.0, 3.0, 1.0, 0.2, 0.02])
    plan = solvers.lms(EDM(), order=4).plan(jnp.asarray(levels))
    for i in range(5):
        used = min(i + 1, 4)
        nodes = [levels[i - j] for j in range(used)]
        for j in range(used):
            expected = integrate.quad(
                lambda at, j=j, nodes=nodes: lagrange(nodes, j, at),
                levels[i],
                levels[i + 1],
                epsrel=1e-10,
            )[0]
            np.testing.assert_allclose(plan.values[j][i], expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(plan.state, 1.0)


@pytest.mark.parametrize("variable", ["t", "rho", "log_rho"])
def test_deis_integrates_in_its_variable(variable, x64):
    """``alpha_s int l_j d rho`` over t, with the polynomial in the variable."""
    schedule = VPLinear()
    ts = np.asarray(timesteps.quadratic(schedule, 5))
    alpha, sigma = (np.asarray(scale(ts)) for scale in (schedule.alpha, schedule.sigma))
    rho = sigma / alpha
    values = {"t": ts, "rho": rho, "log_rho": np.log(rho)}[variable]
    # Fine sums over lambda, along which rho is an exponential and t smooth.
    points, mass = np.polynomial.legendre.leggauss(200)
    plan = solvers.deis(schedule, variable=variable, lower_order_final=False).plan(jnp.asarray(ts))
    for i in range(5):
        used = min(i + 1, 3)
        low, high = np.log(rho[i]), np.log(rho[i + 1])
        at = low + (points + 1) / 2 * (high - low)
        place = {
            "t": np.asarray(schedule.time(-jnp.asarray(at))),
            "rho": np.exp(at),
            "log_rho": at,
        }[variable]
        nodes = [values[i - j] for j in range(used)]
        for j in range(used):
            basis = np.array([lagrange(nodes, j, p) for p in place])
            expected = alpha[i + 1] * np.sum(mass * np.exp(at) * basis) * (high - low) / 2
            np.testing.assert_allclose(plan.values[j][i], expected, rtol=1e-8, atol=1e-11)


def test_ipndm_has_the_weights_of_equal_steps(x64):
    schedule, ts = VPLinear(), timesteps.karras(VPLinear(), 6)
    plan = solvers.ipndm(schedule).plan(ts)
    alpha, sigma = schedule.alpha(ts), schedule.sigma(ts)
    ddim = sigma[1:] - alpha[1:] / alpha[:-1] * sigma[:-1]
    shares = np.stack(plan.values, axis=-1) / np.asarray(ddim)[:, None]
    expected = {
        0: [1, 0, 0, 0],
        1: [3 / 2, -1 / 2, 0, 0],
        2: [23 / 12, -16 / 12, 5 / 12, 0],
        5: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    for step, row in expected.items():
        np.testing.assert_allclose(shares[step], row, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(plan.state, alpha[1:] / alpha[:-1], rtol=1e-12)


def test_pndm_by_hand(x64):
    """F-PNDM: three Runge-Kutta steps of four calls, then the multistep formula."""
    schedule = VPLinear()
    predict, x = RING.predict(schedule), jax.random.normal(jax.random.key(0), (3, 2))
    ts = timesteps.uniform(schedule, 6)

    def transfer(x, t, s, eps):
        ratio = schedule.alpha(s) / schedule.alpha(t)
        return ratio * x + (schedule.sigma(s) - ratio * schedule.sigma(t)) * eps

    def by_hand(x):
        history = []
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            e1 = predict(x, t).eps
            if i < 3:
                middle = (t + s) / 2
                e2 = predict(transfer(x, t, middle, e1), middle).eps
                e3 = predict(transfer(x, t, middle, e2), middle).eps
                e4 = predict(transfer(x, t, s, e3), s).eps
                mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
            else:
                a, b, c = history[::-1][:3]
                mean = (55 * e1 - 59 * a + 37 * b - 9 * c) / 24
            history.append(e1)
            x = transfer(x, t, s, mean)
        return x

    expected, solution = jax.jit(lambda x: (by_hand(x), solvers.pndm(predict, schedule, x, ts).x))(
        x
    )
    np.testing.assert_allclose(solution, expected, rtol=1e-10)
    assert jax.eval_shape(lambda x: solvers.pndm(predict, schedule, x, ts).x, x).shape == x.shape


def test_pndm_counts_its_start():
    schedule = VPLinear()
    solution = solvers.pndm(
        RING.predict(schedule), schedule, jnp.ones((1, 2)), timesteps.uniform(schedule, 4)
    )
    assert solution.nfe == 4 + 9


def test_first_order_is_ddim(x64):
    schedule = VPLinear()
    ts, x = timesteps.karras(schedule, 5), jnp.ones((2, 2))
    predict = RING.predict(schedule)
    ends = jax.jit(
        lambda x: [
            solve(solver, predict, x, ts).x
            for solver in (
                solvers.ddim(schedule),
                *(solvers.deis(schedule, order=1, variable=v) for v in ("t", "rho", "log_rho")),
                solvers.ipndm(schedule, order=1),
            )
        ]
    )(x)
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-11)
