"""A residual network without convolutions, for points in the plane and very small images."""

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from diffjax.models.embeddings import (
    AugmentationEmbedding,
    LabelEmbedding,
    as_batch_of_times,
    fourier_embedding,
    sinusoidal_embedding,
)
from diffjax.typing import Array

__all__ = ["MLP"]

TIME_FEATURES = 64


class MLP(nn.Module):
    """Predicts the noise (or whatever it is trained on) in a vector or a small image.

    Residual blocks of two dense layers, each block's input scaled and shifted by what the time and
    the label say. Blocks and output start at zero, as in the larger networks.

    Attributes:
        width: Length of the hidden vector.
        depth: Number of blocks.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        layer_norm: Whether each block normalises its input. Better for images; in a few dimensions
            it hides the length of the hidden vector, which carries much of the answer there.
        dropout: Rate inside the blocks, when training.
        time_embedding: ``'sinusoidal'`` for a step index in 0..999, as the other networks take it;
            ``'fourier'`` for a time of order one, such as ``t`` in [0, 1] or ``log(sigma) / 4``.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
        dtype: Type of the computation; parameters and the normalisation are in float32.
    """

    width: int = 256
    depth: int = 4
    num_classes: int = 0
    layer_norm: bool = False
    dropout: float = 0.0
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    learned_variance: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        time: Array,
        labels: Array | None = None,
        *,
        augmentation: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Applies the network.

        Args:
            x: Vectors ``(batch, dim)`` or images ``(batch, height, width, channels)``; every axis
                after the first is flattened, and the result has ``x``'s shape again.
            time: In the units of ``time_embedding``, ``()`` or ``(batch,)``.
            labels: Class indices ``(batch,)``, or None for the null label.
            augmentation: What was done to ``x``, ``(batch, k)`` (see ``augmentation``), or None for
                nothing, which is the same as zeros.
            train: Whether dropout is on (then ``rngs={'dropout': key}`` is needed).

        Returns:
            Float32 of ``x``'s shape, the last axis doubled when the variance is learned.

        Raises:
            ValueError: If the shapes do not fit the network.
        """
        batch = x.shape[0]
        conditioning = nn.swish(self._conditioning(time, labels, augmentation, batch))
        h = x.reshape(batch, -1).astype(self.dtype)
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(h)
        for i in range(self.depth):
            h = Block(self.layer_norm, self.dropout, self.dtype, name=f"block_{i}")(
                h, conditioning, train
            )
        h = nn.swish(nn.LayerNorm(dtype=self.dtype, name="norm_out")(h))
        shape = (*x.shape[:-1], x.shape[-1] * (2 if self.learned_variance else 1))
        out = nn.Dense(
            math.prod(shape[1:]),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="out",
        )
        return out(h).astype(jnp.float32).reshape(shape)

    def _conditioning(
        self, time: Array, labels: Array | None, augmentation: Array | None, batch: int
    ) -> Array:
        """Embeds what is told of the input into one vector of length ``width``, for every block."""
        time = as_batch_of_times(time, batch)
        match self.time_embedding:
            case "sinusoidal":
                h = sinusoidal_embedding(time, TIME_FEATURES, "ddpm")
            case "fourier":
                h = fourier_embedding(time, TIME_FEATURES)
            case _:
                raise ValueError(
                    f"time_embedding must be 'sinusoidal' or 'fourier', got {self.time_embedding!r}"
                )
        h = nn.swish(nn.Dense(self.width, dtype=self.dtype, name="time_dense_0")(h))
        h = nn.Dense(self.width, dtype=self.dtype, name="time_dense_1")(h)
        embed = LabelEmbedding(self.num_classes, self.width, dtype=self.dtype, name="label")
        told = AugmentationEmbedding(self.width, dtype=self.dtype, name="augmentation")
        return h + embed(labels, batch) + told(augmentation)


class Block(nn.Module):
    """Two dense layers behind a modulation, around a shortcut.

    Attributes:
        layer_norm: Whether to normalise the input of the two layers.
        dropout: Rate before the second layer.
        dtype: Type of the computation.
    """

    layer_norm: bool
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, conditioning: Array, train: bool) -> Array:
        """Maps ``(batch, width)`` to the same shape."""
        width = x.shape[-1]
        dense = nn.Dense(2 * width, dtype=self.dtype, name="modulation")
        scale, shift = jnp.split(dense(conditioning), 2, axis=-1)
        h = x
        if self.layer_norm:
            h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)
        h = nn.swish(h * (1 + scale) + shift)
        h = nn.swish(nn.Dense(width, dtype=self.dtype, name="dense_0")(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        out = nn.Dense(width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="dense_1")
        return x + out(h)
