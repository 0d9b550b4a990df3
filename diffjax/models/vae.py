"""The KL autoencoder behind latent diffusion (Rombach et al., 2022), as in Stable Diffusion."""

from collections.abc import Sequence
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.typing import Array, Key

__all__ = ["AutoencoderKL", "Posterior"]


class Posterior(NamedTuple):
    """The diagonal Gaussian that an image is encoded as.

    Attributes:
        mean: ``(batch, height, width, channels)``.
        log_variance: Of the same shape.
    """

    mean: Array
    log_variance: Array

    def sample(self, key: Key) -> Array:
        """A draw of each; ``key`` is one, or one per image ``(batch,)``."""
        if key.shape:
            noise = jax.vmap(lambda k: jax.random.normal(k, self.mean.shape[1:]))(key)
        else:
            noise = jax.random.normal(key, self.mean.shape)
        return self.mean + jnp.exp(self.log_variance / 2) * noise

    def kl(self) -> Array:
        """Divergence from the standard normal, summed over the latent: nats ``(batch,)``."""
        terms = jnp.square(self.mean) + jnp.exp(self.log_variance) - 1 - self.log_variance
        return terms.sum(axis=(1, 2, 3)) / 2


class AutoencoderKL(nn.Module):
    """Encodes images as Gaussian latents of a smaller size, and decodes them.

        latents = vae.apply(variables, x, key, method='to_latent')
        x = vae.apply(variables, latents, method='from_latent')

    The defaults are those of Stable Diffusion, U-ViT and DiT: 8 pixels to a latent one.

    Attributes:
        widths: Channels of each level. Each halves the resolution of the one before, so the image
            must be divisible by ``2 ** (len(widths) - 1)``.
        num_res_blocks: Residual blocks a level of the encoder (one more in the decoder).
        latent_channels: Channels of a latent.
        channels: Channels of an image.
        num_groups: Groups of every normalisation.
        scale: Factor that gives the latents of the published training set unit variance.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    widths: Sequence[int] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    latent_channels: int = 4
    channels: int = 3
    num_groups: int = 32
    scale: float = 0.18215
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Makes both halves, and what stands between them and the latent."""
        shared = dict(num_groups=self.num_groups, dtype=self.dtype)
        shape = dict(widths=self.widths, num_res_blocks=self.num_res_blocks)
        self.encoder = Encoder(2 * self.latent_channels, **shape, **shared)
        self.decoder = Decoder(self.channels, **shape, **shared)
        self.quant_conv = nn.Dense(2 * self.latent_channels, dtype=self.dtype)
        self.post_quant_conv = nn.Dense(self.latent_channels, dtype=self.dtype)

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        """Encodes and decodes; see ``to_latent`` and ``from_latent``."""
        return self.from_latent(self.to_latent(x, key))

    def encode(self, x: Array) -> Posterior:
        """The Gaussian of each image, not scaled.

        Args:
            x: Images in [-1, 1], ``(batch, height, width, channels)``.

        Returns:
            Mean and log variance, float32; the latter within -30 to 20.

        Raises:
            ValueError: If the images do not fit the network.
        """
        self._check(x)
        moments = self.quant_conv(self.encoder(x.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: Array) -> Array:
        """Images of latents that are not scaled, ``(batch, h, w, latent_channels)``: float32."""
        return self.decoder(self.post_quant_conv(z.astype(self.dtype))).astype(jnp.float32)

    def to_latent(self, x: Array, key: Key | None = None) -> Array:
        """What a latent diffusion model is trained on.

        Args:
            x: Images in [-1, 1], ``(batch, height, width, channels)``.
            key: For a draw of the posterior, as in published training; None for its mean.

        Returns:
            ``scale`` times the latents, about of unit variance.
        """
        posterior = self.encode(x)
        return self.scale * (posterior.mean if key is None else posterior.sample(key))

    def from_latent(self, latents: Array) -> Array:
        """Images, about in [-1, 1], of what a latent diffusion model draws."""
        return self.decode(latents / self.scale)

    def _check(self, x: Array):
        """Raises a ValueError if the image does not fit."""
        factor = 2 ** (len(self.widths) - 1)
        if x.ndim != 4 or x.shape[3] != self.channels or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"AutoencoderKL with {len(self.widths)} levels takes images (batch, height, width, "
                f"{self.channels}) of a size divisible by {factor}, got {x.shape}"
            )


class Encoder(nn.Module):
    """Image to moments.

    Attributes:
        features: Channels of the output.
        widths: Channels of each level.
        num_res_blocks: Residual blocks a level.
        num_groups: Groups of the normalisations.
        dtype: Type of the computation.
    """

    features: int
    widths: Sequence[int]
    num_res_blocks: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the latent's size."""
        shared = dict(num_groups=self.num_groups, dtype=self.dtype)
        h = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            for j in range(self.num_res_blocks):
                h = ResBlock(width, **shared, name=f"down_{level}_block_{j}")(h)
            if level < len(self.widths) - 1:
                # Padded after the image alone, as PyTorch's was written.
                h = jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))
                strided = dict(strides=2, padding="VALID", name=f"down_{level}_downsample")
                h = nn.Conv(width, (3, 3), dtype=self.dtype, **strided)(h)
        h = middle(h, **shared)
        h = nn.silu(group_norm(h, **shared, name="norm_out"))
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """Latent to image.

    Attributes:
        features: Channels of the output.
        widths: Channels of each level, that of the image first.
        num_res_blocks: Residual blocks a level of the encoder; one more here.
        num_groups: Groups of the normalisations.
        dtype: Type of the computation.
    """

    features: int
    widths: Sequence[int]
    num_res_blocks: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the image's size."""
        shared = dict(num_groups=self.num_groups, dtype=self.dtype)
        h = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="conv_in")(z)
        h = middle(h, **shared)
        # Numbered from the smallest: the order of computation.
        for level, width in enumerate(reversed(self.widths)):
            for j in range(self.num_res_blocks + 1):
                h = ResBlock(width, **shared, name=f"up_{level}_block_{j}")(h)
            if level < len(self.widths) - 1:
                h = einops.repeat(h, "b h w c -> b (h 2) (w 2) c")
                h = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"up_{level}_upsample")(h)
        h = nn.silu(group_norm(h, **shared, name="norm_out"))
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv_out")(h)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
        features: Channels of the output.
        num_groups: Groups of the normalisations.
        dtype: Type of the computation.
    """

    features: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to the same with ``features`` channels."""
        h = x
        for j in (0, 1):
            h = nn.silu(group_norm(h, self.num_groups, self.dtype, f"norm_{j}"))
            h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name=f"conv_{j}")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
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

        def dense(name):
            return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)

        h = group_norm(x, self.num_groups, self.dtype, "norm")
        q, k, v = (einops.rearrange(dense(n)(h), "b h w c -> b (h w) 1 c") for n in ("q", "k", "v"))
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + dense("out")(h)


def middle(h: Array, num_groups: int, dtype: jnp.dtype) -> Array:
    """What stands at the smallest size of both halves."""
    h = ResBlock(h.shape[-1], num_groups, dtype, name="middle_block_0")(h)
    h = AttentionBlock(num_groups, dtype, name="middle_attention")(h)
    return ResBlock(h.shape[-1], num_groups, dtype, name="middle_block_1")(h)


def group_norm(x: Array, num_groups: int, dtype: jnp.dtype, name: str) -> Array:
    """The normalisation used everywhere in the network; its arithmetic is in float32."""
    return nn.GroupNorm(num_groups, epsilon=1e-6, dtype=dtype, name=name)(x)
