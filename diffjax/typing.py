"""Names for the types in signatures."""

import jax

__all__ = ["Array", "Key"]

Array = jax.Array
Key = jax.Array  # a typed key, jax.random.key(seed), or an array of them
