"""Solvers against figures computed for their papers' own settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import Prediction
from diffjax.schedules import EDM, Discrete, VPLinear
from diffjax.solvers import denoise, solve, timesteps
from diffjax.solvers.timesteps import respaced_indices
from diffjax.solvers.transition import transition

# N(0, 0.5^2), from x_T = 1 at t = 1 to t = 1e-3 of the linear VP schedule; exact 0.5000906.
HALF = analytic.Mixture(np.zeros((1, 1)), 0.5)


@pytest.mark.parametrize(
    ("make", "calls", "expected"),
    [
        (solvers.ddim, 12, 0.409626),
        (solvers.ddim, 24, 0.452602),
        (lambda s: solvers.multistep(s, lower_order_final=False), 12, 0.514284),
        (lambda s: solvers.multistep(s, lower_order_final=False), 24, 0.504762),
        (lambda s: solvers.multistep(s, "eps", lower_order_final=False), 12, 0.482271),
        (lambda s: solvers.multistep(s, "eps", lower_order_final=False), 24, 0.495282),
        (solvers.singlestep, 12, 0.446261),
        (solvers.singlestep, 24, 0.483233),
    ],
)
def test_dpm_solver_on_a_gaussian(make, calls, expected, x64):
    schedule = VPLinear()
    solver = make(schedule)
    ts = timesteps.log_snr(schedule, calls // solver.evaluations)
    solution = solve(solver, HALF.predict(schedule), jnp.ones((1, 1)), ts)
    assert solution.nfe == calls
    np.testing.assert_allclose(solution.x.item(), expected, atol=6e-7)


@pytest.mark.parametrize(("n", "expected"), [(5, 0.0157236), (10, 0.0076225), (18, 0.0065953)])
def test_edm_heun_on_a_gaussian(n, expected, x64):
    """x = 1 at sigma = 80 of N(0, 0.5^2); exact 0.00624988; 2 N - 1 calls."""
    recipe = solvers.recipe("heun", EDM(), 2 * n - 1, grid="karras")
    solution = solvers.run(recipe, HALF.predict(EDM()), jnp.ones((1, 1)))
    assert solution.nfe == 2 * n - 1
    np.testing.assert_allclose(solution.x.item(), expected, atol=6e-8)


@pytest.mark.parametrize(("n", "expected"), [(5, 0.2739), (10, 0.3764), (20, 0.4338)])
def test_euler_in_the_noise_level_is_ddim(n, expected, x64):
    """Standard deviation of Euler's samples of N(0, 0.5^2) on EDM's grid, 80 to 0.002."""
    schedule = EDM()
    start = jnp.full((1, 1), jnp.sqrt(0.5**2 + 80.0**2))
    ts = timesteps.karras(schedule, n)
    ends = [
        solve(make(schedule), HALF.predict(schedule), start, ts).x.item()
        for make in (solvers.ddim, solvers.euler)
    ]
    np.testing.assert_allclose(ends[0], expected, atol=6e-5)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-10)


@pytest.mark.parametrize(
    ("std", "variance", "expected"),
    [
        (1.0, "large", 0.99990),
        (1.0, "small", 0.99107),
        (0.5, "large", 1.00301),
        (0.5, "small", 0.98450),
        (0.1, "large", 1.01537),
        (0.1, "small", 0.92759),
    ],
)
def test_ddpm_chain_variance(std, variance, expected, x64):
    """Exact variance, over the data's, of 1000-step ancestral samples of N(0, std^2).

    The step is linear in x and z, so the variance is carried along exactly: the map's slope is
    read off the solver itself, without noise, and its noise from the schedule.
    """
    chain = Discrete.linear(1000, 1e-4, 0.02)
    predict = analytic.Mixture(np.zeros((1, 1)), std).predict(chain)
    betas, abar = chain.betas, np.cumprod(1 - chain.betas)
    previous = np.append(1.0, abar[:-1])
    noise = betas if variance == "large" else betas * (1 - previous) / (1 - abar)

    mean_only = solvers.one_step(
        lambda predict, x, span, key: transition(chain, span, x).posterior_mean(
            x, predict(x, span.t).x0
        )
    )
    ts = jnp.append(timesteps.uniform(chain, 999), 0.0)
    states = solve(mean_only, predict, jnp.ones((1, 1)), ts, trajectory=True).trajectory[:, 0, 0]
    slopes = np.asarray(states[1:] / states[:-1])
    total = 1.0
    for step, slope in enumerate(slopes):
        total = slope**2 * total + (noise[999 - step] if step < 999 else 0.0)
    np.testing.assert_allclose(total / std**2, expected, atol=6e-6)


def test_ancestral_adds_the_noise_it_says():
    """One step of the solver itself against the posterior of the sheet, by moments."""
    chain, n = Discrete.linear(1000), 100_000
    predict = analytic.point_mass(np.array([0.3])).predict(chain)
    ts = jnp.array([0.5, 0.4])
    s2, t2 = 1 - chain.alpha(0.4) ** 2, 1 - chain.alpha(0.5) ** 2
    a = chain.alpha(0.5) / chain.alpha(0.4)
    v = t2 - a**2 * s2
    for name, expected in (("small", v * s2 / t2), ("large", v), ("learned", v * (s2 / t2) ** 0.7)):
        with_variance = lambda x, t: predict(x, t)._replace(variance=jnp.full_like(x, 0.3))  # noqa: E731
        x = jnp.full((n, 1), 0.8)
        end = solve(solvers.ancestral(chain, name), with_variance, x, ts, jax.random.key(0)).x
        mean = (chain.alpha(0.4) * v * 0.3 + a * s2 * 0.8) / t2
        np.testing.assert_allclose(end.mean(), mean, atol=5 * np.sqrt(expected / n))
        np.testing.assert_allclose(end.var(), expected, rtol=0.03)


def test_ddim_is_both_first_order_expansions_and_ancestral_at_eta_one(x64):
    schedule, key = VPLinear(), jax.random.key(0)
    predict = HALF.predict(schedule)
    x = jax.random.normal(jax.random.key(1), (5, 1))
    ts = timesteps.log_snr(schedule, 6)
    span = solvers.Span(ts[0], ts[1], 0, 6)
    over = transition(schedule, span, x)
    prediction: Prediction = predict(x, ts[0])
    ddim = solvers.ddim(schedule).step(predict, x, (), span, None)[0]
    np.testing.assert_allclose(ddim, over.along_x0(x, prediction.x0), rtol=1e-12)
    np.testing.assert_allclose(ddim, over.along_eps(x, prediction.eps), rtol=1e-12)
    noisy = solve(solvers.ddim(schedule, 1.0), predict, x, ts, key).x
    np.testing.assert_allclose(
        noisy, solve(solvers.ancestral(schedule), predict, x, ts, key).x, rtol=1e-9
    )


def test_heun_stochastic_keeps_the_noise_level_it_raised(x64):
    """On a point mass: x_hat has noise s_hat exactly, and the step lands on the line below it."""
    schedule, n = EDM(), 200_000
    predict = analytic.point_mass(np.array([0.0])).predict(schedule)
    solver = solvers.heun_stochastic(schedule, gamma=0.3, noise_min=1.0, noise_max=3.0)
    for level, raised in ((2.0, 2.6), (4.0, 4.0)):
        x = level * jax.random.normal(jax.random.key(1), (n, 1))
        end = solve(solver, predict, x, jnp.array([level, 0.5]), jax.random.key(2)).x
        np.testing.assert_allclose(end.std(), 0.5, rtol=0.01)
        share = float(jnp.corrcoef(end[:, 0], x[:, 0])[0, 1])
        np.testing.assert_allclose(share, level / raised, atol=0.005)


def test_denoise_is_the_prediction_of_x0():
    solution = denoise(HALF.predict(EDM()), jnp.ones((2, 1)), 0.5)
    np.testing.assert_allclose(solution.x, 0.5, rtol=1e-6)
    assert solution.nfe == 1


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("ddim50", np.arange(0, 1000, 20)),
        ("ddim25", np.arange(0, 1000, 40)),
        ([250], np.round(np.arange(250) * 999 / 249)),
        ("10", [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]),
        ([1, 1], [0, 500]),
    ],
)
def test_respaced_indices(sections, expected):
    np.testing.assert_array_equal(respaced_indices(1000, sections), expected)
