"""The data set as the network: what is drawn are its own images, of the class asked for."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, data, metrics, solvers
from diffjax.schedules import EDM, VPLinear
from diffjax.systems import Request, empirical, sampler

NOISE = EDM()
DIGITS = data.create("digits", split="train")
IMAGES = np.asarray(data.to_float(DIGITS.images[:300]))
LABELS = DIGITS.labels[:300]


def draw_from(system, request):
    state = system.init(jax.random.key(0), None)
    return jax.jit(lambda key: system.sample(state, key, request))(jax.random.key(1))


def make(num_classes=10, schedule=NOISE, solver="dpm_solver_pp_2m"):
    recipe = solvers.recipe(solver, schedule, 20)
    draw = sampler(schedule, recipe, (8, 8, 1), num_classes=num_classes)
    return empirical(IMAGES, LABELS, schedule, draw, num_classes)


@pytest.mark.parametrize(
    ("schedule", "solver"), [(EDM(), "dpm_solver_pp_2m"), (VPLinear(), "ancestral")]
)
def test_samples_are_training_images_of_the_class_asked_for(schedule, solver):
    labels = jnp.arange(50) % 10
    samples = draw_from(make(10, schedule, solver), Request(jnp.arange(50), labels))
    found = metrics.nearest_neighbours(IMAGES, np.asarray(samples.images))
    assert found.distances.max() < 1e-2
    np.testing.assert_array_equal(LABELS[found.indices[:, 0]], labels)
    assert len(set(found.indices[:, 0])) > 30, "and not the same few"
    assert samples.nfe == 20


def test_an_unconditional_system_draws_from_all():
    system = make(num_classes=0)
    assert not system.conditional and make().conditional
    samples = draw_from(system, Request(jnp.arange(60)))
    found = metrics.nearest_neighbours(IMAGES, np.asarray(samples.images))
    assert found.distances.max() < 1e-2
    assert len(set(LABELS[found.indices[:, 0]])) >= 8
    assert samples.labels is None


def test_guidance_costs_twice():
    samples = draw_from(make(), Request(jnp.arange(4), jnp.arange(4), 1.5))
    assert samples.nfe == 40 and jnp.isfinite(samples.images).all()


def prediction_of(schedule, num_classes=10):
    """The system's ``(x, t, labels) -> Prediction``, compiled."""
    system = empirical(IMAGES, LABELS, schedule, lambda predict, key, request: predict, num_classes)
    return jax.jit(system.sample(None, None, None))


def test_prediction_is_exact_for_the_examples_of_each_label(x64):
    schedule = VPLinear()
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    t = jnp.array([0.2, 0.6])
    labels = jnp.array([3, 10])  # 10 is the null label
    got = prediction_of(schedule)(x, t, labels)
    for i, label in enumerate(labels):
        chosen = IMAGES if label == 10 else IMAGES[label == LABELS]
        # An image that is left out weighs nothing, exactly.
        expected = analytic.empirical(chosen).predict(schedule)
        expected = jax.jit(expected)(x[i : i + 1], t[i])
        chex.assert_trees_all_close(got.x0[i], expected.x0[0], rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_close(got.eps[i], expected.eps[0], rtol=1e-9, atol=1e-12)
    whole = jax.jit(analytic.empirical(IMAGES).predict(schedule))(x, t)
    for num_classes in (0, 10):
        got = prediction_of(schedule, num_classes)(x, t, None)
        chex.assert_trees_all_close(got, whole, rtol=1e-9, atol=1e-12)


def test_scalar_times_and_pieces_of_a_batch_make_no_difference(monkeypatch):
    x, labels = jax.random.normal(jax.random.key(0), (7, 8, 8, 1)), jnp.arange(7)
    whole = prediction_of(EDM())(x, 0.5, labels)
    module = importlib.import_module("diffjax.systems.empirical")
    monkeypatch.setattr(module, "CHUNK", 3 * IMAGES.size)
    parts = prediction_of(EDM())(x, jnp.full(7, 0.5), labels)
    chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_there_is_nothing_to_train():
    system = make()
    state = system.init(jax.random.key(0), None)
    assert not jax.tree.leaves((state.params, state.ema)) and state.step == 0
    with pytest.raises(ValueError, match="no parameters to train: use --mode sample or evaluate"):
        system.update(state, None, jax.random.key(0))


def test_a_class_without_examples():
    keep = LABELS != 4
    with pytest.raises(ValueError, match="no example of class 4"):
        empirical(IMAGES[keep], LABELS[keep], EDM(), None, num_classes=10)
