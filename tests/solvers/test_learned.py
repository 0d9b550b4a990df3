"""Learned samplers: tables of solvers, what a fit gains on unseen noise, and a closed form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import with_evaluations
from diffjax.schedules import EDM, Discrete, VPLinear, expand, prior
from diffjax.solvers import Recipe, adams, gauss_newton, learned, timesteps, unipc

ANGLES = np.arange(8) * np.pi / 4
MIXTURE = analytic.Mixture(np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1), 0.15)
SCHEDULE = Discrete.linear(1000)
SOLVERS = {
    "ddim": solvers.ddim,
    "euler": solvers.euler,
    "dpm_solver_3m": lambda schedule: solvers.multistep(schedule, "eps", order=3),
    "deis": adams.deis,
    "unipc": unipc.unipc,
}


def start(schedule, n, seed=0, shape=(2,)):
    return prior(schedule, schedule.t_max, (n, *shape), jax.random.key(seed))


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("schedule", [SCHEDULE, EDM()], ids=["vp", "edm"])
def test_a_solver_is_its_table(make, schedule, x64):
    """The table draws what the solver draws, whatever is expanded, corrected or remembered."""
    solver, predict, x = make(schedule), MIXTURE.predict(schedule), start(schedule, 4)
    ts = timesteps.log_snr(schedule, 5)
    table = learned.table(solver, schedule, ts)
    chex.assert_trees_all_equal(table, jnp.tril(table))
    fitted = learned.Fitted(jnp.append(ts, 0.0), ts, table)
    solution = learned.sample(fitted, predict, schedule, x)
    recipe = solvers.run(Recipe(solver, ts, denoise=True), predict, x)
    chex.assert_trees_all_close(solution.x, recipe.x, rtol=1e-6, atol=1e-7)
    assert solution.nfe == recipe.nfe == 6


def test_parameters_of_a_table_and_of_a_grid_return_it(x64):
    solver, ts = unipc.unipc(SCHEDULE), timesteps.uniform(SCHEDULE, 4)
    begun = gauss_newton.Table(learned.table(solver, SCHEDULE, ts), ts)
    again = learned._table(SCHEDULE, 5, learned._of_table(SCHEDULE, begun))
    chex.assert_trees_all_close(again, begun, rtol=1e-9, atol=1e-12)
    again = learned._on_grid(SCHEDULE, solver, learned._of_grid(SCHEDULE, ts))
    chex.assert_trees_all_close(again, begun, rtol=1e-7, atol=1e-9)


def test_gradients_of_each_start_are_those_of_jax(x64):
    """By adjoints of the states, all starts together; by ``jax.grad``, one at a time."""
    predict, x, target = MIXTURE.predict(SCHEDULE), start(SCHEDULE, 3), start(SCHEDULE, 3, seed=1)
    ts = timesteps.uniform(SCHEDULE, 3)
    begun = gauss_newton.Table(learned.table(solvers.multistep(SCHEDULE), SCHEDULE, ts), ts)
    keys = jax.random.split(jax.random.key(0), 1)
    found = gauss_newton._gradients(predict, begun, x[None], target[None], keys)[0, 0]

    def half_error(flat, x, target):
        weights = jnp.eye(5).at[1:].set(0.0).at[rows + 1, columns].set(flat[:-4])
        end = learned.sample(learned.Fitted(jnp.append(ts, 0.0), flat[-4:], weights), *given, x).x
        return jnp.square(end - target).mean() / 2

    rows, columns = gauss_newton._places(4)
    given = predict, SCHEDULE
    for row in range(3):
        pair = x[row : row + 1], target[row : row + 1]
        expected = jax.grad(half_error)(gauss_newton._flat(begun), *pair)
        chex.assert_trees_all_close(found[row], expected, rtol=1e-8, atol=1e-11)


@functools.cache
def fitted_mixture():
    """A short fit on the mixture of eight."""
    predict = MIXTURE.predict(SCHEDULE)
    x = start(SCHEDULE, 64)
    return learned.fit(
        predict, SCHEDULE, steps=5, x_T=x, key=jax.random.key(1), teacher_steps=60, flops=4e7
    )


def rms(fitted, x):
    predict = MIXTURE.predict(SCHEDULE)
    ts = timesteps.log_snr(SCHEDULE, 400)
    fine = Recipe(solvers.multistep(SCHEDULE, order=3), ts, denoise=True)
    exact = jax.jit(lambda x: solvers.run(fine, predict, x).x)(x)
    return float(jnp.sqrt(jnp.mean((learned.sample(fitted, predict, SCHEDULE, x).x - exact) ** 2)))


def test_a_fit_halves_the_error_on_noise_it_has_not_seen():
    x = start(SCHEDULE, 2000, seed=5)
    ts = timesteps.log_snr(SCHEDULE, 4)
    untrained = [
        learned.Fitted(jnp.append(ts, 0.0), ts, learned.table(make(SCHEDULE), SCHEDULE, ts))
        for make in (solvers.ddim, solvers.multistep, unipc.unipc)
    ]
    assert rms(fitted_mixture(), x) < 0.5 * min(rms(table, x) for table in untrained)


def test_a_fit_is_a_plain_pytree_of_arrays(tmp_path):
    fitted = fitted_mixture()
    assert [leaf.shape for leaf in jax.tree.leaves(fitted)] == [(6,), (5,), (6, 6)]
    assert (jnp.diff(fitted.ts) < 0).all() and fitted.ts[0] == 1 and fitted.ts[-1] == 0
    assert (fitted.times >= SCHEDULE.t_min - 1e-9).all() and (fitted.times <= 1).all()
    path = tmp_path / "new" / "sampler.npz"
    learned.save(path, fitted)
    chex.assert_trees_all_equal(learned.load(str(path)), fitted)


def test_samples_under_jit_vmap_and_grad_in_one_trace():
    fitted, traces = fitted_mixture(), []

    def run(fitted, x):
        def predict(x, t):
            traces.append(1)
            return MIXTURE.predict(SCHEDULE)(x, t)

        return learned.sample(fitted, predict, SCHEDULE, x).x

    x = start(SCHEDULE, 6, seed=3)
    jitted = jax.jit(run)
    chex.assert_trees_all_close(jitted(fitted, x), run(fitted, x), rtol=1e-4, atol=1e-5)
    traced = len(traces)
    jitted(jax.tree.map(lambda leaf: leaf * 0.99, fitted), 2 * x)
    assert len(traces) == traced == 2
    mapped = jax.vmap(run, in_axes=(None, 0))(fitted, jnp.stack([x, -x]))
    chex.assert_trees_all_close(mapped[1], run(fitted, -x), rtol=1e-4, atol=1e-5)
    gradients = jax.grad(lambda fitted: run(fitted, x).sum())(fitted)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_counts_every_call():
    calls = []

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return MIXTURE.predict(SCHEDULE)(x, t)

    solution = learned.sample(fitted_mixture(), predict, SCHEDULE, start(SCHEDULE, 3))
    jax.effects_barrier()
    assert solution.nfe == len(calls) == 5
    guided = with_evaluations(MIXTURE.predict(SCHEDULE), 2)
    assert learned.sample(fitted_mixture(), guided, SCHEDULE, start(SCHEDULE, 3)).nfe == 10


def test_the_grid_of_euler_on_a_gaussian_is_the_closed_form():
    """On N(0, c^2) in EDM's time, DDIM is best at equal angles arctan(t / c).

    Its samples then have the exact standard deviation times cos(angle)^calls.
    """
    c, calls, schedule = 0.5, 5, EDM()
    predict = analytic.Mixture(np.zeros((1, 1)), c).predict(schedule)
    fitted = learned.fit(
        predict,
        schedule,
        steps=calls,
        x_T=start(schedule, 64, shape=(1,)),
        key=jax.random.key(0),
        solver=solvers.ddim(schedule),
        flops=1e9,
    )
    angle = np.arctan(80 / c) / calls
    np.testing.assert_allclose(fitted.ts, c * np.tan(angle * np.arange(calls, -1, -1)), rtol=0.1)
    end = learned.sample(fitted, predict, schedule, jnp.array([[80.0]])).x
    exact = c * 80 / np.hypot(80, c)
    # The best untrained grid is 5 % off.
    np.testing.assert_allclose(float(end[0, 0]), exact * np.cos(angle) ** calls, rtol=5e-3)


def test_labels_stay_with_their_rows():
    """A ``predict`` that holds something for each row sees all rows, in order."""
    labels = jnp.arange(300) % 2
    centre = jnp.where(labels == 0, -1.0, 1.0)[:, None]
    point, schedule = analytic.Mixture(jnp.zeros((1, 2)), 0.2), VPLinear()

    def predict(x, t):
        found = point.predict(schedule)(x - expand(schedule.alpha(t), x) * centre, t)
        return found._replace(x0=found.x0 + centre)

    fitted = learned.fit(
        predict,
        schedule,
        steps=2,
        x_T=start(schedule, 300),
        key=jax.random.key(0),
        teacher_steps=20,
        flops=1.0,
    )
    end = learned.sample(fitted, predict, schedule, start(schedule, 300)).x
    assert float(jnp.abs(end.mean(axis=1) - centre[:, 0]).max()) < 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=1), "steps=1; a grid is learned from 2 calls on"),
        (dict(x_T=jnp.full((4, 2), jnp.nan)), "x_T must be finite"),
        (dict(x_T=jnp.zeros(4)), r"x_T must be finite noise \(n, ...\), got shape \(4,\)"),
        (dict(solver=solvers.heun(SCHEDULE)), "takes 2 calls a step"),
        (dict(solver=solvers.ancestral(SCHEDULE)), "adds noise"),
    ],
)
def test_mistakes(change, message):
    arguments = dict(steps=4, x_T=start(SCHEDULE, 8), key=jax.random.key(0), flops=1.0) | change
    with pytest.raises(ValueError, match=message):
        learned.fit(MIXTURE.predict(SCHEDULE), SCHEDULE, **arguments)


def test_mistakes_with_a_fit(tmp_path):
    with pytest.raises(ValueError, match="starts at 80: fit on the schedule"):
        learned.sample(fitted_mixture(), MIXTURE.predict(EDM()), EDM(), start(EDM(), 2))
    with pytest.raises(ValueError, match="make one with --mode fit"):
        learned.load(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="holds no learned sampler"):
        learned.load(str(tmp_path / "other.npz"))
