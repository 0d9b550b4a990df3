"""A small classifier for tiny images, whose penultimate layer serves as a feature space.

It sees clean images only and takes no time: it judges samples, it does not guide them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Classification", "SmallClassifier"]


class Classification(NamedTuple):
    """What the classifier says about a batch.

    Attributes:
        logits: Unnormalised log-probabilities, ``(batch, classes)``.
        features: Activations of the layer before, ``(batch, features)``.
    """

    logits: jax.Array
    features: jax.Array


class _PatchConv(nn.Module):
    """A 3x3 convolution padded by one pixel, written as a dense layer over patches.

    The same function as ``nn.Conv``, and on CPU about ten times as fast inside ``lax.scan``, where
    XLA's convolution runs on a single thread.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [
            padded[:, row : row + height : self.stride, column : column + width : self.stride]
            for row in range(3)
            for column in range(3)
        ]
        return nn.Dense(self.features)(jnp.concatenate(patches, axis=-1))


class SmallClassifier(nn.Module):
    """Convolutions with GELU, each after the first at half the resolution, then two dense layers.

    Attributes:
        classes: Number of classes.
        channels: Channels of each 3x3 convolution; the first keeps the resolution.
        features: Width of the penultimate layer.
    """

    classes: int
    channels: tuple[int, ...] = (32, 64, 64)
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> Classification:
        """Classifies images.

        Args:
            x: Images ``(batch, height, width, channels)``, about in ``[-1, 1]``.

        Returns:
            Logits ``(batch, classes)`` and features ``(batch, features)``.
        """
        for level, channels in enumerate(self.channels):
            x = nn.gelu(_PatchConv(channels, stride=1 if level == 0 else 2)(x))
        x = x.reshape(x.shape[0], -1)
        features = nn.gelu(nn.Dense(self.features)(x))
        return Classification(nn.Dense(self.classes)(features), features)
