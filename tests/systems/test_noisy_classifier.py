"""A classifier of noisy images: trained, scored, and guiding another system."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import analytic, losses, prediction, solvers, systems
from diffjax.schedules import EDM, Cosine, VPLinear, expand, half_log_snr
from diffjax.systems import NoisyClassifier, Request

# Two classes: dark and light pictures, with a little of both in each.
SHAPE, LEVELS = (2, 2, 1), np.array([64, 191], np.uint8)
MEANS = LEVELS / 127.5 - 1


class Network(nn.Module):
    """Logistic regression whose slope depends on the time."""

    @nn.compact
    def __call__(self, x, time, *, train=False):
        features = x.reshape(x.shape[0], -1)
        slope = nn.Dense(4)(jnp.stack([time / 1000, jnp.log1p(time)], axis=-1))
        return nn.Dense(2)(jnp.concatenate([features, features * slope], axis=-1))


def make(**options):
    schedule = VPLinear()
    return systems.noisy_classifier(
        Network(),
        schedule,
        prediction.EPS,
        times=losses.stratified_times,
        optimizer=optax.adam(3e-2),
        **options,
    )


def batch(size=256):
    labels = np.arange(size) % 2
    return {"image": np.broadcast_to(LEVELS[labels][:, None, None, None], (size, *SHAPE)),
            "label": labels.astype(np.int32)}  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    system = make()
    state = system.init(jax.random.key(0), batch())
    update, metrics = jax.jit(system.update), None
    for step in range(150):
        state, metrics = update(state, batch(), jax.random.fold_in(jax.random.key(1), step))
    return system, state, metrics


def schedule_noise(t):
    return float(VPLinear().sigma(t) / VPLinear().alpha(t))


def exact(schedule):
    """``log p(y | x_t)`` of the two point masses."""
    points = [analytic.point_mass(jnp.full(SHAPE, mean)) for mean in MEANS]

    def log_probabilities(x, t):
        return jax.nn.log_softmax(
            jnp.stack([p.log_density(schedule, x, t) for p in points], axis=-1)
        )

    return log_probabilities


def test_learns_the_posterior_of_classes(trained):
    _, state, metrics = trained
    schedule = VPLinear()
    judged = systems.judge(Network(), state.params, schedule, prediction.EPS)
    assert metrics["accuracy"] > 0.6 and metrics["loss"] < 0.6
    for t in (0.3, 0.5, 0.7):
        noise = jax.random.normal(jax.random.key(2), (200, *SHAPE))
        labels = np.arange(200) % 2
        means = jnp.asarray(MEANS)[labels][:, None, None, None]
        x = schedule.alpha(t) * means + schedule.sigma(t) * noise
        got, best = judged(x, t), exact(schedule)(x, t)
        np.testing.assert_allclose(jnp.exp(got).sum(-1), 1, rtol=1e-5)
        picked = (-jnp.take_along_axis(p, labels[:, None], 1).mean() for p in (got, best))
        ours, least = picked
        assert least - 1e-3 <= ours < least + 0.08


def test_scores_fall_with_the_noise(trained):
    system, state, _ = trained
    scores = system.evaluate(state, batch(), jax.random.key(3))
    right, noise = scores["accuracy"], scores["noise"]
    assert len(right) == len(noise) == 8 and right[0] > 0.99 and 0.4 < right[-1] < 0.65
    np.testing.assert_allclose(noise[0], schedule_noise(1e-3), rtol=1e-4)
    np.testing.assert_allclose(noise[-1], schedule_noise(1.0), rtol=1e-4)
    assert system.sample is None


def test_microbatches_make_the_same_update():
    whole, parts = make(), make(microbatches=4)
    state = whole.init(jax.random.key(0), batch(32))
    one, _ = whole.update(state, batch(32), jax.random.key(1))
    four, _ = parts.update(state, batch(32), jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, four.params)


def known(schedule):
    return NoisyClassifier(exact(schedule), schedule, SHAPE, 2)


@pytest.mark.parametrize("schedule", [EDM(), Cosine()], ids=["edm", "cosine"])
def test_a_state_of_another_process_is_judged_at_its_noise_level(schedule, x64):
    x, labels = jax.random.normal(jax.random.key(0), (6, *SHAPE)), jnp.arange(6) % 2
    lam = jnp.linspace(-1.0, 2.0, 6)
    t = schedule.time(lam)
    np.testing.assert_allclose(half_log_snr(schedule, t), lam, atol=1e-6)
    got = known(VPLinear()).log_probability(schedule, x, t, labels)
    expected = exact(schedule)(x, t)
    np.testing.assert_allclose(got, expected[jnp.arange(6), labels], rtol=1e-5, atol=1e-8)


# Guiding.


def draw(scale, *, conditional, solver="dpm_solver_pp_2m", classifier=True, **options):
    """Samples of the two points by exact prediction, on another schedule than the classifier's."""
    schedule = Cosine()
    mixture = analytic.Mixture(jnp.stack([jnp.full(SHAPE, m) for m in MEANS]), 0.1)
    alone = [analytic.Mixture(jnp.full((1, *SHAPE), m), 0.1).predict(schedule) for m in MEANS]

    def predict(x, t, labels):
        if labels is None:
            return mixture.predict(schedule)(x, t)
        dark, light = (p(x, t) for p in alone)
        pick = expand(labels, x) == 0
        return jax.tree.map(lambda a, b: jnp.where(pick, a, b), dark, light)

    chain = lambda gradient: solvers.recipe(solver, schedule, 21, gradient=gradient, **options)  # noqa: E731
    drawn = systems.sampler(
        schedule,
        solvers.recipe(solver, schedule, 21, **options),
        SHAPE,
        num_classes=2 if conditional else 0,
        classifier=known(VPLinear()) if classifier else None,
        guided_chain=chain if solver == "ancestral" else None,
    )
    labels = jnp.arange(64) % 2
    request = Request(jnp.arange(64), labels, scale)
    samples = jax.jit(lambda key: drawn(predict, key, request).images)(jax.random.key(0))
    return np.asarray(samples.mean((1, 2, 3))), MEANS[labels]


@pytest.mark.parametrize("solver", ["dpm_solver_pp_2m", "ddim", "heun", "ancestral"])
def test_guides_an_unconditional_prediction_to_the_class(solver):
    """With scale 1 it draws what was asked for; with 0, either."""
    means, wanted = draw(1.0, conditional=False, solver=solver)
    assert (np.sign(means) == np.sign(wanted)).all() and np.abs(means - wanted).mean() < 0.2
    free, _ = draw(0.0, conditional=False, solver=solver)
    assert 0.2 < (np.sign(free) == np.sign(wanted)).mean() < 0.8


def test_scale_one_leaves_a_conditional_prediction_alone():
    plain, _ = draw(1.0, conditional=True, classifier=False)
    same, _ = draw(1.0, conditional=True)
    np.testing.assert_array_equal(plain, same)
    array, _ = draw(jnp.ones(64), conditional=True)
    np.testing.assert_allclose(array, plain, atol=1e-5)
    more, _ = draw(3.0, conditional=True)
    assert (np.abs(more) > np.abs(plain)).mean() > 0.9


def test_unconditional_with_scale_s_is_conditional_with_s():
    """Away from p(x), to p(x) p(y|x)^s, whichever way: exact networks agree."""
    for scale in (1.0, 2.5):
        one, _ = draw(scale, conditional=False)
        two, _ = draw(jnp.full(64, scale), conditional=True)
        np.testing.assert_allclose(one, two, atol=0.02)
