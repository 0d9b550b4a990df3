"""One key for a batch, or one per sample: what a sample's draws depend on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import random


def test_one_key_is_the_ordinary_draw(key):
    chex.assert_trees_all_equal(random.normal(key, (4, 3)), jax.random.normal(key, (4, 3)))
    chex.assert_trees_all_equal(random.fold_in(key, 5), jax.random.fold_in(key, 5))


def test_a_key_per_sample_draws_each_row_alone(key):
    keys = random.per_sample(key, np.array([7, 0, 3]))
    whole = random.normal(keys, (3, 2, 5))
    rows = [jax.random.normal(k, (2, 5)) for k in keys]
    chex.assert_trees_all_close(whole, jnp.stack(rows), rtol=1e-6)
    parts = jnp.concatenate(
        [random.normal(keys[:1], (1, 2, 5)), random.normal(keys[1:], (2, 2, 5))]
    )
    chex.assert_trees_all_close(whole, parts, rtol=1e-6)


def test_a_samples_key_is_that_of_its_number(key):
    keys = random.per_sample(key, jnp.array([2, 9]))
    chex.assert_shape(keys, (2,))
    assert keys[1] == jax.random.fold_in(key, 9) and keys[0] != keys[1]
    assert random.per_sample(jax.random.key(1), jnp.array([9]))[0] != keys[1]
    # Numbers of samples may exceed 2^31.
    large = random.per_sample(key, np.array([2**31, 2**32 - 1]))
    assert large[0] != large[1]


def test_fold_in_of_keys_folds_into_each(key):
    keys = jax.random.split(key, 3)
    folded = random.fold_in(keys, 4)
    assert all(folded[i] == jax.random.fold_in(keys[i], 4) for i in range(3))


def test_draws_of_samples_are_independent_and_standard_normal(key):
    draws = random.normal(random.per_sample(key, jnp.arange(4000)), (4000, 2))
    for column in np.asarray(draws).T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 4 / np.sqrt(4000)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(4000)


def test_types(key, x64):
    assert random.normal(key, (2,)).dtype == jnp.float64
    assert random.normal(key, (2,), jnp.float32).dtype == jnp.float32
    assert random.normal(jax.random.split(key), (2, 3), jnp.bfloat16).dtype == jnp.bfloat16


def test_transformations(key):
    keys = jax.random.split(key, 6).reshape(2, 3)
    drawn = jax.jit(jax.vmap(lambda k: random.normal(k, (3, 4))))(keys)
    chex.assert_trees_all_close(drawn[1], random.normal(keys[1], (3, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [(None, "give solve a key"), (4, "4 keys for a batch of 3: give one key, or one per sample")],
)
def test_mistakes(keys, message, key):
    with pytest.raises(ValueError, match=message):
        random.normal(keys and jax.random.split(key, keys), (3, 2))
