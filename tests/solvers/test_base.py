"""``solve``: what it checks, what it returns, and what it leaves to the solver."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.schedules import EDM, VPLinear
from diffjax.solvers import Solver, solve, timesteps
from diffjax.solvers.unipc import unipc

PREDICT = analytic.Mixture(np.eye(2), 0.1).predict(VPLinear())
TS = np.array([1.0, 0.5, 0.1], np.float32)
X = np.ones((3, 2), np.float32)


def test_trajectory_holds_every_state():
    solution = solve(solvers.ddim(VPLinear()), PREDICT, X, TS, trajectory=True)
    chex.assert_shape(solution.trajectory, (3, 3, 2))
    chex.assert_trees_all_equal(solution.trajectory[0], jnp.asarray(X))
    chex.assert_trees_all_equal(solution.trajectory[-1], solution.x)
    half = solve(solvers.ddim(VPLinear()), PREDICT, X, TS[:2])
    chex.assert_trees_all_close(solution.trajectory[1], half.x, rtol=1e-5)
    assert solve(solvers.ddim(VPLinear()), PREDICT, X, TS).trajectory is None


def test_span_tells_where_the_step_is():
    def step(predict, x, memory, span, key):
        return x, memory + jnp.stack([span.index, span.remaining, 10 * span.t, 10 * span.t_next])

    spans = []
    solver = Solver(lambda x: jnp.zeros(4), step, 0)
    solve(solver, PREDICT, X, TS, callback=lambda span, x: spans.append((span, x.shape)))
    jax.effects_barrier()
    seen = [(int(s.index), int(s.remaining), float(s.t), float(s.t_next)) for s, _ in spans]
    assert seen == [(0, 2, 1.0, 0.5), (1, 1, 0.5, np.float32(0.1))]
    assert all(shape == (3, 2) for _, shape in spans)


def test_memory_passes_from_step_to_step():
    solver = Solver(lambda x: jnp.zeros(()), lambda p, x, m, s, k: (x + m, m + 1), 0)
    chex.assert_trees_all_close(solve(solver, PREDICT, X, jnp.arange(5.0, 0, -1)).x, X + 6)


def test_runs_one_after_another_are_one_run():
    solver, schedule = solvers.ddim(VPLinear()), VPLinear()
    ts = timesteps.log_snr(schedule, 6)
    whole = solve(solver, PREDICT, X, ts)
    first = solve(solver, PREDICT, X, ts[:4])
    second = solve(solver, PREDICT, first.x, ts[3:])
    chex.assert_trees_all_close(second.x, whole.x, rtol=1e-5)
    assert first.nfe + second.nfe == whole.nfe


def test_guidance_counts_in_nfe():
    from diffjax.prediction import with_evaluations

    solution = solve(solvers.heun(VPLinear()), with_evaluations(PREDICT, 2), X, TS)
    assert solution.nfe == 2 * 2 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(ts=TS[::-1]), r"decrease strictly, but ts\[0\] = 0.1.* followed by ts\[1\] = 0.5"),
        (dict(ts=np.array([1.0, 0.5, 0.5])), r"ts\[1\] = 0.5 is followed by ts\[2\] = 0.5"),
        (dict(ts=np.array([1.0, np.nan])), "decrease strictly"),
        (dict(ts=TS[:1]), "at least two times"),
        (dict(ts=np.ones((3, 4))), r"\(steps \+ 1, 3\) for a batch of 3"),
        (dict(x=np.array([[np.nan, 0.0]])), "not finite"),
        (dict(x=np.array([[np.inf, 0.0]])), "not finite"),
        (dict(x=np.float32(1.0)), "batch of floats"),
        (dict(x=np.ones((3, 2), np.int32)), "batch of floats"),
        (dict(key=jax.random.split(jax.random.key(0), 4)), r"one per sample \(3,\)"),
    ],
)
def test_mistakes(change, message):
    arguments = {"x": X, "ts": TS, "key": None} | change
    with pytest.raises(ValueError, match=message):
        solve(solvers.ddim(VPLinear()), PREDICT, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.ancestral(EDM(), "tiny"), "unknown variance 'tiny': choose one of small"),
        (lambda: solvers.multistep(EDM(), "v"), "unknown expansion 'v': choose 'x0' or 'eps'"),
        (
            lambda: solve(
                solvers.ancestral(VPLinear(), "learned"), PREDICT, X, TS, jax.random.key(0)
            ),
            "needs a network with learned variances",
        ),
        (
            lambda: solvers.recipe("rk45", EDM(), 20),
            "unknown solver 'rk45': choose one of ancestral",
        ),
        (lambda: solvers.recipe("ddim", EDM(), 20, grid="cubic"), "unknown grid 'cubic'"),
        (lambda: solvers.recipe("heun", EDM(), 20), "20 calls cannot be made, use 19 or 21"),
        (lambda: solvers.recipe("heun", EDM(), 1), "1 calls cannot be made, use 3 or 5"),
        (lambda: solvers.recipe("ddim", EDM(), 20, order=3), "unexpected keyword argument 'order'"),
        (
            lambda: solve(solvers.ancestral(VPLinear()), PREDICT, X, TS),
            "adds noise: give solve a key",
        ),
    ],
)
def test_mistakes_with_solvers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", [n for n in solvers.SOLVERS if n != "heun_stochastic"])
@pytest.mark.parametrize("denoise", [False, True])
def test_a_recipe_makes_exactly_the_calls_asked_for(name, denoise):
    recipe = solvers.recipe(name, VPLinear(), 6 + denoise, grid="log_snr", denoise=denoise)
    nfe = []

    def run(x, key):
        solution = solvers.run(recipe, PREDICT, x, key)
        nfe.append(solution.nfe)
        return solution.x

    assert jax.eval_shape(run, X, jax.random.key(0)).shape == X.shape
    assert nfe[0] == recipe.calls == 6 + denoise


def test_a_recipe_takes_the_options_of_its_solver():
    recipe = solvers.recipe("unipc", VPLinear(), 7, order=2, variant="bh1", expansion="eps")
    own = unipc(VPLinear(), "eps", order=2, variant="bh1")
    ends = [solve(solver, PREDICT, X, recipe.ts).x for solver in (recipe.solver, own)]
    chex.assert_trees_all_equal(*ends)
    with pytest.raises(ValueError, match="unexpected keyword argument 'orders'"):
        solvers.recipe("dpm_solver_pp_3m", VPLinear(), 7, orders=3)
