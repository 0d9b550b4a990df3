"""The DPM-Solver family: the figures of its sheet, its identities, its errors, its mistakes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.schedules import EDM, VPLinear
from diffjax.solvers import dpm_solver, solve, timesteps
from diffjax.solvers.dpm_solver import mixed_orders
from diffjax.solvers.exponential import phis, weights
from diffjax.solvers.unipc import sample as sample_unipc
from diffjax.solvers.unipc import unipc

SCHEDULE = VPLinear()
# N(0, 0.5^2), from x_T = 1 at t = 1 to t = 1e-3 in equal steps of lambda; exact 0.5000906.
HALF = analytic.Mixture(np.zeros((1, 1)), 0.5).predict(SCHEDULE)
RING = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
).predict(SCHEDULE)


def published(algorithm, method, order, **options):
    return functools.partial(
        dpm_solver.sample,
        algorithm=algorithm,
        method=method,
        order=order,
        **{"skip": "logSNR", **options},
    )


UNIPC_3 = functools.partial(sample_unipc, order=3, variant="bh2", skip="logSNR")


@pytest.mark.parametrize(
    ("sample", "calls", "expected"),
    [
        (published("dpmsolver", "singlestep", 3), 12, 0.567026),
        (published("dpmsolver", "singlestep", 3), 24, 0.502106),
        (published("dpmsolver++", "multistep", 3), 12, 0.515796),
        (published("dpmsolver++", "multistep", 3), 24, 0.502450),
        (UNIPC_3, 12, 0.517012),
        (UNIPC_3, 24, 0.500097),
    ],
)
def test_on_a_gaussian(sample, calls, expected, x64):
    solution = sample(HALF, SCHEDULE, jnp.ones((1, 1)), steps=calls)
    assert solution.nfe == calls
    np.testing.assert_allclose(solution.x.item(), expected, atol=6e-7)


@functools.cache
def ring():
    """Many starts for the eight Gaussians on a circle, and where the ODE takes them."""
    with jax.enable_x64(True):
        x = SCHEDULE.sigma(1.0) * jax.random.normal(jax.random.key(0), (1024, 2))
        run = jax.jit(lambda x, ts: solve(unipc(SCHEDULE), RING, x, ts).x)
        return x, run(x, timesteps.log_snr(SCHEDULE, 1500))


def rms(x, reference):
    return float(jnp.sqrt(jnp.mean((x - reference) ** 2)))


@pytest.mark.parametrize(
    ("sample", "calls", "expected"),
    [
        (published("dpmsolver", "multistep", 1), 20, 0.055),
        (published("dpmsolver++", "multistep", 2), 20, 0.0122),
        (published("dpmsolver", "singlestep", 3), 20, 0.0201),
        (published("dpmsolver++", "singlestep", 3), 20, 0.0070),
        (published("dpmsolver++", "multistep", 3), 20, 0.0034),
        (UNIPC_3, 20, 0.0046),
        (published("dpmsolver", "singlestep", 3), 5, 2.3),
        (published("dpmsolver++", "multistep", 2), 5, 0.10),
        # The last step of this grid is huge in lambda: ten steps make it without a lower order.
        (published("dpmsolver++", "multistep", 2, skip="time_uniform"), 10, 0.51),
        (functools.partial(UNIPC_3, skip="time_uniform"), 10, 0.107),
    ],
)
def test_error_on_a_ring(sample, calls, expected, x64):
    """Published to two figures, for other starts."""
    x, reference = ring()
    error = rms(sample(RING, SCHEDULE, x, steps=calls).x, reference)
    np.testing.assert_allclose(error, expected, rtol=0.3)


@pytest.mark.parametrize(("order", "calls", "error"), [(2, 100, 0.0033), (3, 72, 0.0003)])
def test_adaptive_on_a_ring(order, calls, error, x64):
    x, reference = ring()
    run = jax.jit(published("dpmsolver", "adaptive", order, steps=0), static_argnums=(0,))
    solution = run(RING, SCHEDULE, x[:256])
    assert abs(int(solution.nfe) - calls) <= 0.2 * calls
    assert rms(solution.x, reference[:256]) < 2 * error


def test_adaptive_by_sample(x64):
    """Every sample as if alone: its own calls, and no more of them than the batch's worst."""
    x, reference = ring()
    x, reference = x[:6], reference[:6]
    run = jax.jit(
        lambda x, per_sample: solvers.solve_adaptive(SCHEDULE, RING, x, per_sample=per_sample),
        static_argnums=1,
    )
    own, shared = run(x, True), run(x, False)
    assert own.nfe.shape == (6,) and shared.nfe.shape == ()
    assert (own.nfe <= shared.nfe + 10).all() and len(set(map(int, own.nfe))) > 1
    alone = run(x[:1], True)
    assert alone.nfe[0] == own.nfe[0]
    np.testing.assert_allclose(alone.x[0], own.x[0], rtol=1e-9)
    assert rms(own.x, reference) < 0.02


def test_adaptive_without_a_step_is_not_a_number():
    broken = lambda x, t: jax.tree.map(lambda leaf: leaf * jnp.nan, RING(x, t))  # noqa: E731
    solution = solvers.solve_adaptive(SCHEDULE, broken, jnp.ones((2, 2)))
    assert jnp.isnan(solution.x).all() and (solution.nfe == 2).all()


def test_identities(x64):
    """Members of the family that are the same map, on a grid that is uneven in lambda."""
    unip = functools.partial(unipc, SCHEDULE, corrector=False)
    multistep = functools.partial(solvers.multistep, SCHEDULE)
    exact = dict(solver_type="taylor", halved_curvature=False)
    pairs = {
        "order 1 of both expansions": (multistep("eps", order=1), multistep("x0", order=1)),
        "order 1 is DDIM": (multistep(order=1), solvers.ddim(SCHEDULE)),
        "one stage is DDIM": (solvers.singlestep(SCHEDULE, order=1), solvers.ddim(SCHEDULE)),
        "UniP-2 (bh2) is 2M": (unip(order=2), multistep(order=2)),
        "UniP-2 solved is 2M taylor": (
            unip(order=2, variant="vary_coeff"),
            multistep(order=2, solver_type="taylor"),
        ),
        # Its second step, of order 2, is UniP-2: rho = 1/2 as in the default type.
        "UniP-3 is 3M doubled": (unip(order=3), multistep(order=3, halved_curvature=False)),
        "UniP-4 solved": (
            unip(order=4, variant="vary_coeff"),
            multistep(order=4, **exact),
        ),
        "eps too": (
            unipc(SCHEDULE, "eps", order=3, corrector=False),
            multistep("eps", order=3, halved_curvature=False),
        ),
        "DEIS in log rho is DPM-Solver": (
            solvers.deis(SCHEDULE, order=3, variable="log_rho"),
            multistep("eps", order=3, **exact),
        ),
    }
    ts = timesteps.karras(SCHEDULE, 7)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    ends = jax.jit(
        lambda x: {
            name: [solve(solver, RING, x, ts).x for solver in pair] for name, pair in pairs.items()
        }
    )(x)
    for name, (one, other) in ends.items():
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12, err_msg=name)


def test_bh1_and_bh2_differ_where_one_difference_is_weighed(x64):
    """UniP-2 and UniC-1 alone: where the weights are solved for, B cancels."""
    ts = timesteps.log_snr(SCHEDULE, 6)
    plans = [unipc(SCHEDULE, order=3, variant=variant).plan(ts) for variant in ("bh1", "bh2")]
    differ = [
        np.any([np.abs(a - b) > 1e-12 for a, b in zip(*pair, strict=True)], axis=0)
        for pair in zip(
            *((plan.predict.values, plan.correct.values) for plan in plans), strict=True
        )
    ]
    # Orders are 1 2 3 3 2 1; step i corrects step i - 1, and the first has nothing to correct.
    np.testing.assert_array_equal(differ[0], [False, True, False, False, True, False])
    np.testing.assert_array_equal(differ[1][1:], [True, False, False, False, False])


def test_dpm2_is_singlestep_dpm_solver(x64):
    """k-diffusion's DPM2, by hand: an Euler step to the middle in log sigma, its slope for all."""
    schedule = EDM()
    predict = analytic.Mixture(np.eye(2), 0.3).predict(schedule)
    levels = np.array([20.0, 5.0, 1.0, 0.3])
    x = 20.0 * jax.random.normal(jax.random.key(0), (3, 2))
    got = solve(solvers.SOLVERS["dpm2"](schedule), predict, x, jnp.asarray(levels)).x
    for sigma, sigma_next in itertools.pairwise(levels):
        slope = (x - predict(x, sigma).x0) / sigma
        middle = np.sqrt(sigma * sigma_next)
        x_middle = x + slope * (middle - sigma)
        slope = (x_middle - predict(x_middle, middle).x0) / middle
        x = x + slope * (sigma_next - sigma)
    np.testing.assert_allclose(got, x, rtol=1e-9)


@pytest.mark.parametrize(("steps", "orders"), [(10, [3, 3, 3, 1]), (12, [3, 3, 3, 2, 1])])
def test_fast_orders(steps, orders):
    assert mixed_orders(steps, 3) == orders
    assert mixed_orders(20, 3) == [3] * 6 + [2]
    for order in (1, 2, 3):
        assert all(sum(mixed_orders(n, order)) == n for n in range(order, 30))


def test_phi_functions(x64):
    """Against their integrals, and where the two forms meet."""
    z = jnp.array([-12.0, -1.0001, -0.9999, -1e-3, 0.0, 1e-8, 0.5, 0.9999, 1.0001, 6.0])
    points, mass = np.polynomial.legendre.leggauss(60)
    u, mass = (points + 1) / 2, mass / 2
    for k, phi in enumerate(phis(4, z), start=1):
        power = u ** (k - 1) / np.prod(np.arange(1, k))
        expected = np.exp((1 - u) * np.asarray(z)[:, None]) @ (mass * power)
        np.testing.assert_allclose(phi, expected, rtol=1e-11)
    single = phis(3, jnp.float32(1e-4))
    np.testing.assert_allclose(single, [1.00005, 0.5000167, 0.1666708], rtol=3e-7)


def test_weights_give_powers_their_moments(x64):
    nodes = [jnp.array([0.0, 0.0]), jnp.array([-0.7, -1.0]), jnp.array([-1.9, -2.0])]
    moments = [jnp.array([1.0, 1.0]), jnp.array([0.4, 0.5]), jnp.array([0.3, 1 / 3])]
    found = weights(nodes, moments)
    for n, moment in enumerate(moments):
        total = sum(w * node**n for w, node in zip(found, nodes, strict=True))
        np.testing.assert_allclose(total, moment, rtol=1e-12)


def test_per_sample_ends(x64):
    """Every sample with a start and an end of its own is that sample by itself."""
    x = jax.random.normal(jax.random.key(0), (2, 2))
    t_start, t_end = np.array([1.0, 0.8]), np.array([1e-3, 0.02])
    sample = published("dpmsolver++", "singlestep", 3, steps=5, denoise_to_zero=True)
    got = sample(RING, SCHEDULE, x, t_start=t_start, t_end=t_end)
    assert got.nfe == 6
    for i in range(2):
        alone = sample(RING, SCHEDULE, x[i : i + 1], t_start=t_start[i], t_end=t_end[i])
        np.testing.assert_allclose(got.x[i], alone.x[0], rtol=1e-9)


def test_a_key_draws_from_the_sde():
    sample = published("sde-dpmsolver++", "multistep", 2, steps=10)
    x = jnp.ones((2, 2))
    ends = [sample(RING, SCHEDULE, x, key=jax.random.key(seed)).x for seed in (0, 0, 1)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert (ends[0] != ends[2]).all()


X = jnp.ones((2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="multi"), "unknown method 'multi': choose one of multistep, singlestep"),
        (dict(algorithm="dpm"), r"unknown algorithm 'dpm': choose one of dpmsolver, dpmsolver\+\+"),
        (dict(skip="logsnr"), "unknown skip 'logsnr': choose one of time_uniform, logSNR"),
        (dict(solver_type="midpoint"), "unknown solver_type 'midpoint': choose 'dpmsolver' or"),
        (dict(order=4), "order=4 is not offered by dpmsolver with method='multistep'.* 1, 2, 3"),
        (dict(method="adaptive", order=1), "order=1 is not offered .* choose one of 2, 3"),
        (dict(steps=2, order=3), "steps=2 is fewer than order=3; take more steps"),
        (dict(algorithm="sde-dpmsolver++"), "adds noise: give a key"),
        (
            dict(algorithm="sde-dpmsolver++", key=jax.random.key(0), order=3),
            "order=3 is not offered by sde-dpmsolver",
        ),
        (
            dict(algorithm="sde-dpmsolver++", key=jax.random.key(0), method="singlestep"),
            "is a multistep method, not 'singlestep'",
        ),
        (dict(method="adaptive", t_end=np.array([1e-3, 1e-2])), "must be scalars.* no per-sample"),
        (dict(method="adaptive", t_start=0.1, t_end=0.2), "must decrease.*t_start=0.1"),
        (dict(method="adaptive", t_start=2.0), "t_start=2.* beyond the schedule's t_max=1.0"),
        (dict(t_start=0.1, t_end=0.2), "must decrease: t_start=0.1 is not larger than t_end=0.2"),
        (dict(t_start=0.1, t_end=0.1), "must decrease"),
        (dict(t_start=1.5), "t_start=1.5 is beyond the schedule's t_max=1.0"),
        (dict(t_end=-0.1), "t_end=-0.1 is below 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        dpm_solver.sample(RING, SCHEDULE, X, **{"steps": 10, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="bh3"), "unknown variant 'bh3': choose one of bh1, bh2, vary_coeff"),
        (dict(order=5), "order must be 1, 2, 3 or 4, got 5"),
        (dict(steps=2), "steps=2 is fewer than order=3; take more steps"),
        (dict(algorithm="v"), "unknown algorithm 'v': choose one of data_prediction"),
        (dict(skip="karras"), "unknown skip 'karras'"),
    ],
)
def test_mistakes_with_unipc(options, message):
    chosen = {"steps": 10, "order": 3, "variant": "bh2", "skip": "logSNR", **options}
    with pytest.raises(ValueError, match=message):
        sample_unipc(RING, SCHEDULE, X, **chosen)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.multistep(SCHEDULE, order=5), "multistep: order must be 1, 2, 3 or 4"),
        (lambda: solvers.singlestep(SCHEDULE, order=4), "singlestep: order must be 1, 2 or 3"),
        (lambda: solvers.singlestep(SCHEDULE, r1=1.0), "needs 0 < r1 < r2 < 1"),
        (lambda: solvers.singlestep(SCHEDULE, order=3, r1=0.7), "needs 0 < r1 < r2 < 1"),
        (lambda: solvers.sde_multistep(SCHEDULE, order=3), "sde_multistep: order must be 1 or 2"),
        (lambda: solvers.deis(SCHEDULE, variable="x"), "unknown variable 'x': choose 't', 'rho'"),
        (lambda: solvers.lms(SCHEDULE, order=5), "lms: order must be 1, 2, 3 or 4"),
        (lambda: solvers.ipndm(SCHEDULE, order=0), "ipndm: order must be 1, 2, 3 or 4"),
        (
            lambda: solvers.pndm(RING, SCHEDULE, X, timesteps.uniform(SCHEDULE, 3)),
            "pndm: needs 4 steps or more",
        ),
        (
            lambda: solve(solvers.multistep(SCHEDULE), RING, X, jnp.array([1.5, 0.5])),
            "t_start=1.5 is beyond the schedule's t_max=1.0",
        ),
        (
            lambda: solve(unipc(SCHEDULE), RING, X, jnp.array([1.0, 0.5, -0.1])),
            "t_end=-0.1 is below 0",
        ),
        (
            lambda: solvers.ancestral_form(SCHEDULE, solvers.multistep(SCHEDULE)),
            "needs a solver without memory, such as singlestep",
        ),
        (
            lambda: solve(solvers.sde_multistep(SCHEDULE), RING, X, timesteps.uniform(SCHEDULE, 3)),
            "adds noise: give solve a key",
        ),
    ],
)
def test_mistakes_with_solvers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
