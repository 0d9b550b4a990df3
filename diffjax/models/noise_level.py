"""Networks that tell how much noise there is in an image: logits over a grid of noise levels.

They see an image alone, no time and no label. The levels themselves are the trainer's business
(``diffjax.mcmc.noise_levels``); the first class is the noisiest.
"""

import flax.linen as nn
import jax.numpy as jnp

from diffjax.typing import Array

__all__ = ["NoiseLevelConv", "NoiseLevelMLP"]


class NoiseLevelConv(nn.Module):
    """Convolutions, each with ReLU and an average over 2x2 pixels, then one dense layer.

    The defaults are the predictor of Denoising MCMC (Kim & Ye 2023, arXiv 2209.14593) for 32x32x3
    images, 1,413,416 parameters; for 256x256 its strides are (4, 4, 4, 2), with as many. For 8x8
    digits, ``channels=(16, 32)``, ``strides=(2, 2)`` and 200 levels will do.

    Attributes:
        levels: Number of noise levels.
        channels: Channels of each 3x3 convolution, padded by one pixel.
        strides: Stride of the average after each.
        dtype: Type of the computation; parameters are in float32.
    """

    levels: int = 1000
    channels: tuple[int, ...] = (32, 64, 128, 256)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits ``(batch, levels)`` of images ``(batch, height, width, channels)``.

        Raises:
            ValueError: Channels and strides differ in number, or the images are too small.
        """
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"channels and strides go together, got {self.channels} and {self.strides}"
            )
        x = x.astype(self.dtype)
        for index, (channels, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            if min(x.shape[1:3]) < 2:
                raise ValueError(
                    f"an image of {x.shape[1]}x{x.shape[2]} is left before average {index + 1} of "
                    f"{len(self.channels)}: give fewer channels and strides"
                )
            conv = nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{index}")
            x = nn.avg_pool(nn.relu(conv(x)), (2, 2), strides=(stride, stride))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.levels, dtype=self.dtype, name="out")(x).astype(jnp.float32)


class NoiseLevelMLP(nn.Module):
    """Dense layers, for vectors and very small images.

    They see the input at unit length and the logarithm of the length it had: that alone tells the
    level where noise drowns the data, and all inputs are of one size.

    Attributes:
        levels: Number of noise levels.
        width: Length of the hidden vectors.
        depth: Number of hidden layers.
        dtype: Type of the computation; parameters are in float32.
    """

    levels: int = 200
    width: int = 256
    depth: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits ``(batch, levels)`` of anything ``(batch, ...)``."""
        h = x.reshape(x.shape[0], -1).astype(jnp.float32)
        length = jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-12)
        h = jnp.concatenate([h / length, jnp.log(length)], axis=-1).astype(self.dtype)
        for index in range(self.depth):
            h = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name=f"dense_{index}")(h))
        return nn.Dense(self.levels, dtype=self.dtype, name="out")(h).astype(jnp.float32)
