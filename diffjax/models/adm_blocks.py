"""What the U-Net of ADM is made of: residual blocks, attention, resampling, normalisation."""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.typing import Array

__all__ = [
    "AttentionBlock",
    "AttentionPool",
    "ResBlock",
    "conv",
    "dense",
    "group_norm",
    "resampled",
]


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the conditioning in between, around a shortcut.

    Attributes:
        features: Channels of the output.
        resample: ``'down'`` or ``'up'`` to halve or double the resolution of both branches.
        scale_shift_norm: Whether the conditioning scales and shifts the second normalisation.
        dropout: Rate before the second convolution.
        num_groups: Groups of the normalisations.
        dtype: Type of the computation.
    """

    features: int
    resample: str
    scale_shift_norm: bool
    dropout: float
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, conditioning: Array, train: bool) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same with ``features`` channels."""
        norm = functools.partial(group_norm, self.num_groups, self.dtype)
        h = nn.silu(norm("norm_0")(x))
        if self.resample:
            h, x = resampled(h, self.resample), resampled(x, self.resample)
        h = conv(x.shape[-1], self.features, self.dtype, "conv_0")(h)

        width = (2 if self.scale_shift_norm else 1) * self.features
        embedding = dense(conditioning.shape[-1], width, self.dtype, "time_dense")
        embedded = embedding(nn.silu(conditioning))[:, None, None, :]
        if self.scale_shift_norm:
            scale, shift = jnp.split(embedded, 2, axis=-1)
            h = norm("norm_1")(h) * (1 + scale) + shift
        else:
            h = norm("norm_1")(h + embedded)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(self.features, self.features, self.dtype, "conv_1", zero=True)(h)
        if x.shape[-1] != self.features:
            x = dense(x.shape[-1], self.features, self.dtype, "shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions, around a shortcut.

    Attributes:
        num_heads: Attention heads.
        new_order: Whether the queries of all heads are packed together, or each head's own
            queries, keys and values.
        num_groups: Groups of the normalisation.
        dtype: Type of the computation; the softmax is in float32.
    """

    num_heads: int
    new_order: bool
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same shape."""
        channels = x.shape[-1]
        if self.num_heads < 1 or channels % self.num_heads:
            raise ValueError(f"attention needs heads that divide its {channels} channels")
        h = group_norm(self.num_groups, self.dtype, "norm")(x)
        h = dense(channels, 3 * channels, self.dtype, "qkv")(h.reshape(x.shape[0], -1, channels))
        h = attend(h, self.num_heads, self.new_order)
        return x + dense(channels, channels, self.dtype, "out", zero=True)(h).reshape(x.shape)


class AttentionPool(nn.Module):
    """What a token, the mean of all, gathers from all positions by attention (as in CLIP).

    Attributes:
        features: Length of the result.
        num_heads: Attention heads; their queries are packed together, unlike in the trunk.
        dtype: Type of the computation; the softmax is in float32.
    """

    features: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to ``(batch, features)``."""
        channels = x.shape[-1]
        tokens = x.reshape(x.shape[0], -1, channels)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        positions = self.param(
            "positions", nn.initializers.normal(channels**-0.5), (channels, tokens.shape[1])
        )
        tokens = tokens + positions.T.astype(self.dtype)
        qkv = dense(channels, 3 * channels, self.dtype, "qkv")(tokens)
        pooled = attend(qkv, self.num_heads, new_order=True)[:, 0]
        return dense(channels, self.features, self.dtype, "out")(pooled)


def attend(qkv: Array, num_heads: int, new_order: bool) -> Array:
    """Attention of packed queries, keys and values ``(batch, n, 3 channels)``."""
    packing = "(three h d)" if new_order else "(h three d)"
    q, k, v = einops.rearrange(qkv, f"b n {packing} -> three b n h d", three=3, h=num_heads)
    return einops.rearrange(jax.nn.dot_product_attention(q, k, v), "b n h d -> b n (h d)")


def resampled(x: Array, direction: str) -> Array:
    """Means of 2x2 pixels, or each pixel as 2x2."""
    if direction == "down":
        return einops.reduce(x, "b (h 2) (w 2) c -> b h w c", "mean")
    return einops.repeat(x, "b h w c -> b (h 2) (w 2) c")


def group_norm(num_groups: int, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """The normalisation used everywhere in the network; its arithmetic is in float32."""
    return nn.GroupNorm(num_groups, epsilon=1e-5, dtype=dtype, name=name)


def conv(
    into: int, features: int, dtype: jnp.dtype, name: str, *, zero=False, **options
) -> nn.Conv:
    """A 3x3 convolution, padded by one pixel."""
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        dtype=dtype,
        name=name,
        **_initializers(9 * into, zero),
        **options,
    )


def dense(into: int, features: int, dtype: jnp.dtype, name: str, *, zero=False) -> nn.Dense:
    """A dense layer, which is also a 1x1 convolution."""
    return nn.Dense(features, dtype=dtype, name=name, **_initializers(into, zero))


def _initializers(fan_in: int, zero: bool) -> dict:
    """Exactly zero, or uniform up to ``1 / sqrt(fan_in)``, biases too: PyTorch's, as published."""
    if zero:
        return dict(kernel_init=nn.initializers.zeros)

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5

    return dict(kernel_init=uniform, bias_init=uniform)
