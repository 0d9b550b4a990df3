"""Blocks of NCSN++ and DDPM++: residual blocks that resample, attention, steps of the pyramids."""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.models.resampling import downsample, filtered, upsample
from diffjax.typing import Array

__all__ = ["AttentionBlock", "FourierFeatures", "PyramidStep", "ResBlock", "group_norm"]

BOX = (1, 1)


init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
attention_init = nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")
# What the paper's code calls zero: small enough to be nothing, large enough to break symmetry.
almost_zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def group_norm(x: Array, dtype: jnp.dtype, name: str) -> Array:
    """Normalises groups of four channels, 32 of them at most; the arithmetic is in float32."""
    groups = min(x.shape[-1] // 4, 32)
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name)(x)


class FourierFeatures(nn.Module):
    """``[sin(2 pi W t) | cos(2 pi W t)]`` of a time of order one, with random frequencies W.

    The frequencies are drawn once and belong to the parameters, so that a checkpoint holds them;
    no gradient reaches them.

    Attributes:
        features: Number of frequencies.
        scale: Their standard deviation.
    """

    features: int
    scale: float

    @nn.compact
    def __call__(self, time: Array) -> Array:
        """Maps times ``(batch,)`` to features ``(batch, 2 features)``."""
        drawn = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", drawn, (self.features,)))
        angles = time[:, None] * frequencies * (2 * np.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
    """The residual block of BigGAN: two 3x3 convolutions, which may halve or double the size.

    Both branches are resampled before the first convolution; the conditioning is added after it.

    Attributes:
        features: Channels of the output.
        resample: ``'up'``, ``'down'`` or ``''``.
        kernel: Taps of the resampling filter; none for nearest pixels and means.
        dropout: Rate before the second convolution.
        rescale: Factor on the sum of both branches.
        dtype: Type of the computation.
    """

    features: int
    resample: str
    kernel: Sequence[float]
    dropout: float
    rescale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, conditioning: Array, train: bool) -> Array:
        """Maps ``(batch, height, width, channels)`` to ``features`` channels, resampled."""

        def conv(name, kernel_init):
            return nn.Conv(
                self.features, (3, 3), kernel_init=kernel_init, dtype=self.dtype, name=name
            )

        dense = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="time_dense")
        shift = dense(nn.swish(conditioning))[:, None, None, :]
        h = nn.swish(group_norm(x, self.dtype, "norm_0"))
        if self.resample:
            change = {"up": upsample, "down": downsample}[self.resample]
            h, x = (change(a, self.kernel or BOX) for a in (h, x))
        h = conv("conv_0", init)(h) + shift
        h = nn.swish(group_norm(h, self.dtype, "norm_1"))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv("conv_1", almost_zero_init)(h)
        if self.resample or x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="shortcut")(x)
        return self.rescale * (x + h)


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, around a shortcut.

    Attributes:
        rescale: Factor on the sum of both branches.
        dtype: Type of the computation; the softmax is in float32.
    """

    rescale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same shape."""

        def dense(name, kernel_init):
            return nn.Dense(x.shape[-1], kernel_init=kernel_init, dtype=self.dtype, name=name)

        h = group_norm(x, self.dtype, "norm")
        q, k, v = (
            einops.rearrange(dense(name, attention_init)(h), "b h w c -> b (h w) 1 c")
            for name in ("q", "k", "v")
        )
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return self.rescale * (x + dense("out", almost_zero_init)(h))


class PyramidStep(nn.Module):
    """A 3x3 convolution that halves or doubles the size of a pyramid's image.

    With a filter, it runs before the strided convolution on the way down, and after the transposed
    one on the way up.

    Attributes:
        features: Channels of the output.
        resample: ``'up'`` or ``'down'``.
        kernel: Taps of the resampling filter; none for nearest pixels, or none at all on the way
            down.
        dtype: Type of the computation.
    """

    features: int
    resample: str
    kernel: Sequence[float]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to ``features`` channels, resampled."""
        strided = dict(strides=2, padding="VALID")
        excess = len(self.kernel) - 2
        if self.resample == "down":
            if self.kernel:
                x = filtered(x, self.kernel, ((excess + 3) // 2, (excess + 2) // 2))
            else:
                x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
            return self._conv(x, **strided)
        if not self.kernel:
            return self._conv(upsample(x, BOX))
        x = self._conv(x, input_dilation=2, padding=((2, 2), (2, 2)), use_bias=False)
        # Zeros between the pixels leave a quarter of the sum.
        x = 4 * filtered(x, self.kernel, ((excess - 1) // 2 + 1, (excess - 2) // 2 + 1))
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)

    def _conv(self, x: Array, **options) -> Array:
        return nn.Conv(
            self.features, (3, 3), kernel_init=init, dtype=self.dtype, name="conv", **options
        )(x)
