"""The U-Net of "Denoising Diffusion Probabilistic Models" (Ho, Jain & Abbeel, 2020)."""

import functools
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.embeddings import (
    AugmentationEmbedding,
    LabelEmbedding,
    as_batch_of_times,
    sinusoidal_embedding,
)
from diffjax.typing import Array

__all__ = ["UNet"]

init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# What the paper's code calls zero: small enough to be nothing, large enough to break symmetry.
almost_zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


class UNet(nn.Module):
    """Predicts the noise (or whatever it is trained on) in an image.

    Two passes over a pyramid of resolutions, down and up, joined by skip connections at every
    block. The defaults are the paper's CIFAR-10 network. An optional label embedding is added to
    that of the time.

    Attributes:
        ch: Width of the first level; a multiple of ``num_groups``.
        ch_mult: Width of each level in units of ``ch``. Each level halves the resolution of the
            one before, so the image must be divisible by ``2 ** (len(ch_mult) - 1)``.
        num_res_blocks: Residual blocks a level on the way down (one more on the way up).
        attn_resolutions: Heights, in pixels, at which every block is followed by attention.
        dropout: Rate inside the residual blocks, when training.
        num_groups: Groups of every normalisation. The time enters a block as a shift of each
            channel, and a normalisation takes the mean of its group away: where a group is a single
            channel, nothing of the time is left. Networks narrower than the paper's want fewer
            groups, such as ``ch // 4``.
        channels: Channels of the output; None for those of the input. They differ when the input
            carries a conditioning image beside the noisy one.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    ch: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    num_groups: int = 32
    channels: int | None = None
    num_classes: int = 0
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
            x: Images ``(batch, height, width, channels)``.
            time: Step index in 0..999 (fractions allowed), ``()`` or ``(batch,)``.
            labels: Class indices ``(batch,)``, or None for the null label.
            augmentation: What was done to ``x``, ``(batch, k)`` (see ``augmentation``), or None for
                nothing, which is the same as zeros.
            train: Whether dropout is on (then ``rngs={'dropout': key}`` is needed).

        Returns:
            Float32 of ``x``'s height and width.

        Raises:
            ValueError: If the shapes do not fit the network.
        """
        self._check(x)
        conditioning = self._conditioning(time, labels, augmentation, x.shape[0])

        shared = dict(num_groups=self.num_groups, dtype=self.dtype)
        res_block = functools.partial(ResBlock, dropout=self.dropout, **shared)
        attention = functools.partial(AttentionBlock, **shared)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=init, dtype=self.dtype)

        def block(h, features, place, j):
            h = res_block(features, name=f"{place}_block_{j}")(h, conditioning, train)
            if h.shape[1] in self.attn_resolutions:
                h = attention(name=f"{place}_attention_{j}")(h)
            return h

        levels = list(enumerate(self.ch_mult))
        h = conv(self.ch, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for level, mult in levels:
            if level > 0:
                h = conv(h.shape[-1], strides=2, name=f"down_{level - 1}_downsample")(h)
                skips.append(h)
            for j in range(self.num_res_blocks):
                h = block(h, self.ch * mult, f"down_{level}", j)
                skips.append(h)

        h = res_block(h.shape[-1], name="middle_block_0")(h, conditioning, train)
        h = attention(name="middle_attention")(h)
        h = res_block(h.shape[-1], name="middle_block_1")(h, conditioning, train)

        for level, mult in reversed(levels):
            for j in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, self.ch * mult, f"up_{level}", j)
            if level > 0:
                h = einops.repeat(h, "b h w c -> b (h 2) (w 2) c")
                h = conv(h.shape[-1], name=f"up_{level}_upsample")(h)

        h = nn.swish(group_norm(self.num_groups, self.dtype, "norm_out")(h))
        channels = (self.channels or x.shape[-1]) * (2 if self.learned_variance else 1)
        return conv(channels, kernel_init=almost_zero_init, name="conv_out")(h).astype(jnp.float32)

    def _conditioning(
        self, time: Array, labels: Array | None, augmentation: Array | None, batch: int
    ) -> Array:
        """Embeds what is told of the input into one vector of length ``4 ch``, for every block."""
        features = 4 * self.ch
        h = sinusoidal_embedding(as_batch_of_times(time, batch), self.ch, "ddpm")
        h = nn.Dense(features, kernel_init=init, dtype=self.dtype, name="time_dense_0")(h)
        h = nn.Dense(features, kernel_init=init, dtype=self.dtype, name="time_dense_1")(nn.swish(h))
        embed = LabelEmbedding(self.num_classes, features, dtype=self.dtype, name="label")
        told = AugmentationEmbedding(features, dtype=self.dtype, name="augmentation")
        return h + embed(labels, batch) + told(augmentation)

    def _check(self, x: Array):
        """Raises a ValueError if the image or the widths do not fit."""
        if x.ndim != 4:
            raise ValueError(f"UNet takes images (batch, height, width, channels), got {x.shape}")
        factor = 2 ** (len(self.ch_mult) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"UNet with {len(self.ch_mult)} levels needs a height and width divisible by "
                f"{factor}, got {x.shape[1]}x{x.shape[2]}; pad the images or shorten ch_mult"
            )
        if self.ch % self.num_groups:
            raise ValueError(
                f"UNet needs ch divisible by its {self.num_groups} groups, got {self.ch}"
            )


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the conditioning added in between, around a shortcut.

    Attributes:
        features: Channels of the output.
        dropout: Rate before the second convolution.
        num_groups: Groups of the normalisations.
        dtype: Type of the computation.
    """

    features: int
    dropout: float
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, conditioning: Array, train: bool) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same with ``features`` channels."""
        dense = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="time_dense")
        shift = dense(nn.swish(conditioning))[:, None, None, :]
        h = nn.swish(group_norm(self.num_groups, self.dtype, "norm_0")(x))
        h = nn.Conv(self.features, (3, 3), kernel_init=init, dtype=self.dtype, name="conv_0")(h)
        h = nn.swish(group_norm(self.num_groups, self.dtype, "norm_1")(h + shift))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.Conv(
            self.features, (3, 3), kernel_init=almost_zero_init, dtype=self.dtype, name="conv_1"
        )(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, around a shortcut.

    Attributes:
        num_groups: Groups of the normalisation.
        dtype: Type of the computation; the softmax is in float32.
    """

    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same shape."""
        features = x.shape[-1]

        def dense(name, kernel_init=init):
            return nn.Dense(features, kernel_init=kernel_init, dtype=self.dtype, name=name)

        h = group_norm(self.num_groups, self.dtype, "norm")(x)
        q, k, v = (einops.rearrange(dense(n)(h), "b h w c -> b (h w) 1 c") for n in ("q", "k", "v"))
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + dense("out", almost_zero_init)(h)


def group_norm(num_groups: int, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """The normalisation used everywhere in the network; its arithmetic is in float32."""
    return nn.GroupNorm(num_groups, epsilon=1e-6, dtype=dtype, name=name)
