"""Random draws with one key for a batch, or one key per sample.

A key of shape ``()`` serves the whole batch. Keys of shape ``(batch,)`` serve a sample each, so
that sample ``i`` depends on key ``i`` alone: the same picture for any batch size and any number of
devices. Every function of the library that takes a key takes both.
"""

import jax
import jax.numpy as jnp

from diffjax.typing import Array, Key

__all__ = ["fold_in", "normal", "per_sample"]


def normal(key: Key | None, shape: tuple[int, ...], dtype=None) -> Array:
    """Standard normal noise of ``shape``, from one key or from one key per leading index.

    Raises:
        ValueError: There is no key, or there are keys per sample but not ``shape[0]`` of them.
    """
    if key is None:
        raise ValueError("this solver adds noise: give solve a key")
    dtype = dtype or jnp.result_type(float)
    if not key.ndim:
        return jax.random.normal(key, shape, dtype)
    if key.shape != shape[:1]:
        raise ValueError(
            f"{key.shape[0]} keys for a batch of {shape[0]}: give one key, or one per sample"
        )
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)


def fold_in(key: Key, index: Array) -> Key:
    """``jax.random.fold_in`` of ``index`` into one key, or into each of a batch of keys."""
    return (
        jax.random.fold_in(key, index)
        if not key.ndim
        else jax.vmap(lambda k: jax.random.fold_in(k, index))(key)
    )


def per_sample(key: Key, indices: Array) -> Key:
    """One key per sample, ``fold_in(key, index)``: depends on the seed and the index alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(indices, jnp.uint32))
