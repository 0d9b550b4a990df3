import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import state as states
from diffjax.systems import gradient_update

ROWS, DIM = 24, 5
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))


def loss(params, batch, slots, key):
    """A regression with a draw per row and a use of the size of the whole batch."""
    noise = jax.vmap(jax.random.normal)(slots.keys(key))
    place = slots.index / slots.total
    error = batch["image"] @ params["w"] + params["b"] * place + noise
    return jnp.mean(error**2), {"error": jnp.mean(error)}


def make_state(seed=0):
    params = {"w": jnp.ones(DIM), "b": jnp.ones(())}
    return states.create(jax.random.key(seed), params, OPTIMIZER, (0.9, 0.99))


def make_batch(rows=ROWS):
    return {"image": jax.random.normal(jax.random.key(1), (rows, DIM))}


def update(**options):
    return gradient_update(loss, OPTIMIZER, **options)


def without_key(result):
    state, metrics = result
    return state.replace(key=jax.random.key_data(state.key)), metrics


@pytest.fixture
def whole():
    return without_key(update()(make_state(), make_batch(), jax.random.key(2)))


def test_update_descends_the_loss_with_the_optimiser(whole):
    state, batch, key = make_state(), make_batch(), jax.random.key(2)

    def by_hand(params):
        noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, i)) for i in range(ROWS)])
        error = batch["image"] @ params["w"] + params["b"] * jnp.arange(ROWS) / ROWS + noise
        return jnp.mean(error**2)

    value, grads = jax.value_and_grad(by_hand)(state.params)
    updates, _ = OPTIMIZER.update(grads, state.opt_state)
    new, metrics = whole
    chex.assert_trees_all_close(new.params, optax.apply_updates(state.params, updates), rtol=1e-6)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-6)
    # Before clipping, so that one sees when it acts.
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-6)


def test_averages_move_with_every_update(whole):
    state, new = make_state(), whole[0]
    assert new.step == 1
    for average in new.ema.values():
        expected = jax.tree.map(lambda old, now: 0.1 * old + 0.9 * now, state.params, new.params)
        chex.assert_trees_all_close(average, expected, rtol=1e-6)  # warm-up: 0.1 at first
    plain = update(ema_warmup=False)(state, make_batch(), jax.random.key(2))[0]
    for rate, average in plain.ema.items():
        expected = jax.tree.map(
            lambda old, now, rate=float(rate): rate * old + (1 - rate) * now,
            state.params,
            plain.params,
        )
        chex.assert_trees_all_close(average, expected, rtol=1e-6)


def test_distance_is_that_of_the_slowest_average(whole):
    state, metrics = whole
    apart = optax.tree.norm(optax.tree.sub(state.ema["0.99"], state.params))
    assert metrics["ema_distance"] == pytest.approx(
        float(apart / optax.tree.norm(state.params)), rel=1e-5
    )


@pytest.mark.parametrize("microbatches", [2, 3, ROWS])
def test_accumulated_microbatches_are_the_whole_batch(whole, microbatches):
    parts = update(microbatches=microbatches)(make_state(), make_batch(), jax.random.key(2))
    chex.assert_trees_all_close(without_key(parts), whole, rtol=2e-5, atol=1e-6)


def test_accumulated_microbatches_are_the_whole_batch_in_float64(x64):
    step = [update(microbatches=m)(make_state(), make_batch(), jax.random.key(2)) for m in (1, 4)]
    chex.assert_trees_all_close(*map(without_key, step), rtol=1e-12)


@pytest.mark.parametrize("devices, microbatches", [(2, 1), (8, 1), (4, 3)])
def test_pmap_is_the_whole_batch(whole, devices, microbatches):
    mapped = jax.pmap(
        update(axis="devices", microbatches=microbatches),
        axis_name="devices",
        in_axes=(None, 0, None),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    batch = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, DIM), make_batch())
    result = mapped(make_state(), batch, jax.random.key(2))
    chex.assert_trees_all_close(without_key(result), whole, rtol=2e-5, atol=1e-6)


def test_clipping_in_the_optimiser_bounds_the_step():
    sgd = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    state = states.create(jax.random.key(0), make_state().params, sgd)
    huge = jax.tree.map(lambda leaf: 1e4 * leaf, make_batch())
    new, metrics = gradient_update(loss, sgd)(state, huge, jax.random.key(2))
    assert metrics["grad_norm"] > 1e4
    moved = optax.tree.norm(optax.tree.sub(new.params, state.params))
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_same_key_same_update_and_other_key_another():
    step = functools.partial(update(), make_state(), make_batch())
    first, again, other = (step(jax.random.key(seed))[1]["loss"] for seed in (2, 2, 3))
    assert first == again != other


def test_batch_that_cannot_be_split_is_an_error():
    message = "a batch of 24 rows cannot be split in 5 microbatches"
    with pytest.raises(ValueError, match=re.escape(message)):
        update(microbatches=5)(make_state(), make_batch(), jax.random.key(2))


def test_without_averages_there_is_no_distance():
    state = states.create(jax.random.key(0), make_state().params, OPTIMIZER)
    _, metrics = update()(state, make_batch(), jax.random.key(2))
    assert set(metrics) == {"loss", "grad_norm", "error"}
    assert np.isfinite(metrics["loss"])
