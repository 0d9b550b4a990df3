"""The diffusion transformer of "Scalable Diffusion Models with Transformers" (Peebles & Xie, 2022).

The adaLN-Zero form is the best of the paper's four and the only one released; the others are its
ablation.
"""

import functools
import re
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.embeddings import (
    AugmentationEmbedding,
    LabelEmbedding,
    as_batch_of_times,
    grid_positions,
    sinusoidal_embedding,
)
from diffjax.typing import Array

__all__ = ["DIT_SIZES", "DiT", "patchify", "published_dit", "unpatchify"]

TIME_FEATURES = 256

DIT_SIZES = {
    "S": dict(depth=12, width=384, num_heads=6),
    "B": dict(depth=12, width=768, num_heads=12),
    "L": dict(depth=24, width=1024, num_heads=16),
    "XL": dict(depth=28, width=1152, num_heads=16),
}


def published_dit(size: str, **attributes) -> "DiT":
    """A network of the paper, by its name.

    Args:
        size: Size and patch size as in ``'XL/2'`` or ``'S/8'``; sizes are the keys of
            ``DIT_SIZES``.
        **attributes: Any of ``DiT``'s, instead of the published ones (1000 classes, learned
            variance).

    Returns:
        The module.

    Raises:
        ValueError: If there is no such size.
    """
    match = re.fullmatch(r"(\w+)/(\d+)", size)
    if match is None or match[1] not in DIT_SIZES:
        raise ValueError(
            f"unknown DiT {size!r}; write a size of {', '.join(DIT_SIZES)}, a slash and the patch "
            "size, for example 'B/4'"
        )
    published = dict(patch_size=int(match[2]), num_classes=1000, learned_variance=True)
    return DiT(**{**DIT_SIZES[match[1]], **published, **attributes})


def patchify(x: Array, patch_size: int) -> Array:
    """Cuts images into patches.

    Args:
        x: Images ``(batch, height, width, channels)``.
        patch_size: Side of a patch; divides height and width.

    Returns:
        Tokens ``(batch, patches, patch_size * patch_size * channels)``, row by row; inside a token
        the order is row, column, channel.
    """
    return einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(tokens: Array, patch_size: int, height: int) -> Array:
    """Puts patches together again, the inverse of ``patchify``.

    Args:
        tokens: Tokens ``(batch, patches, patch_size * patch_size * channels)``.
        patch_size: Side of a patch.
        height: Height of the images in pixels.

    Returns:
        Images ``(batch, height, width, channels)``.
    """
    return einops.rearrange(
        tokens,
        "b (h w) (p q c) -> b (h p) (w q) c",
        p=patch_size,
        q=patch_size,
        h=height // patch_size,
    )


Conditioning = Literal["adaln_zero", "adaln", "cross_attention", "in_context"]


class DiT(nn.Module):
    """Predicts the noise (or whatever it is trained on) in an image or a latent.

    A vision transformer on patches. The embeddings of time and label add up to one vector, from
    which each block computes the shift and scale of its normalisations and the gates of its
    residual branches; as those start at zero, every block starts as the identity and the output
    as exactly zero. In the other forms there are no gates, or the two embeddings are two tokens,
    among those of the image or beside them.

    Attributes:
        patch_size: Side of a patch; divides the image's height and width.
        width: Length of a token, divisible by 4 and by ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
        conditioning: How time and label enter: ``'adaln_zero'``, ``'adaln'``,
            ``'cross_attention'`` or ``'in_context'``.
        remat: Whether to recompute the inside of each block in the backward pass; saves memory.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    patch_size: int = 2
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    num_classes: int = 0
    learned_variance: bool = False
    conditioning: Conditioning = "adaln_zero"
    remat: bool = False
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
            train: Without effect, as the published network has no dropout; the other networks
                share the signature.

        Returns:
            Float32 of ``x``'s height and width.

        Raises:
            ValueError: If the shapes do not fit the network.
        """
        del train
        self._check(x)
        batch, height, width, channels = x.shape
        conditioning = self._conditioning(time, labels, augmentation, batch)

        tokens = patchify(x.astype(self.dtype), self.patch_size)
        tokens = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="patch_embed")(
            tokens
        )
        grid = height // self.patch_size, width // self.patch_size
        tokens += jnp.asarray(grid_positions(*grid, self.width), self.dtype)

        in_context = self.conditioning == "in_context"
        if in_context:
            tokens = jnp.concatenate([conditioning.astype(self.dtype), tokens], axis=1)
        # One traced block for all layers: compile time does not grow with depth.
        block = BLOCKS[self.conditioning]
        layers = nn.scan(
            nn.remat(block, prevent_cse=False) if self.remat else block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        tokens, _ = layers(self.num_heads, self.dtype, name="blocks")(tokens, conditioning)
        if in_context:
            tokens = tokens[:, 2:]

        if self.conditioning.startswith("adaln"):
            shift, scale = modulation(conditioning, 2, self.width, self.dtype)
            tokens = modulate(layer_norm(self.dtype)(tokens), shift, scale)
        else:
            tokens = layer_norm(self.dtype, "norm_out")(tokens)
        channels *= 2 if self.learned_variance else 1
        tokens = nn.Dense(
            self.patch_size**2 * channels,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="out",
        )(tokens)
        return unpatchify(tokens.astype(jnp.float32), self.patch_size, height)

    def _conditioning(
        self, time: Array, labels: Array | None, augmentation: Array | None, batch: int
    ) -> Array:
        """Embeds what is told of the input, for every block.

        Returns:
            The sum ``(batch or 1, width)``; or time and label as tokens ``(batch, 2, width)``.
        """

        def dense(name):
            kernel_init = nn.initializers.normal(0.02)
            return nn.Dense(self.width, kernel_init=kernel_init, dtype=self.dtype, name=name)

        h = sinusoidal_embedding(as_batch_of_times(time, batch), TIME_FEATURES, "adm")
        h = dense("time_dense_1")(nn.silu(dense("time_dense_0")(h)))
        embed = LabelEmbedding(
            self.num_classes, self.width, stddev=0.02, dtype=self.dtype, name="label"
        )
        h += AugmentationEmbedding(self.width, dtype=self.dtype, name="augmentation")(augmentation)
        label = embed(labels, batch)
        if self.conditioning.startswith("adaln"):
            return h + label
        shape = (batch, self.width)
        return jnp.stack([jnp.broadcast_to(h, shape), jnp.broadcast_to(label, shape)], axis=1)

    def _check(self, x: Array):
        """Raises a ValueError if the image or the attributes do not fit."""
        if self.conditioning not in BLOCKS:
            raise ValueError(
                f"conditioning must be one of {', '.join(BLOCKS)}, got {self.conditioning!r}"
            )
        if x.ndim != 4:
            raise ValueError(f"DiT takes images (batch, height, width, channels), got {x.shape}")
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise ValueError(
                f"DiT needs a height and width divisible by its patch size {self.patch_size}, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"DiT needs a width divisible by its heads, got {self.width} and {self.num_heads}"
            )


class AdaptiveBlock(nn.Module):
    """Attention and MLP, both modulated, and gated in adaLN-Zero, by the conditioning.

    Attributes:
        num_heads: Attention heads.
        dtype: Type of the computation; normalisation and softmax are in float32.
        gated: Whether the conditioning computes gates of the two branches.
    """

    num_heads: int
    dtype: jnp.dtype
    gated: bool = True

    @nn.compact
    def __call__(self, x: Array, conditioning: Array) -> tuple[Array, None]:
        """Maps tokens ``(batch, patches, width)`` to the same shape, in the form of a scan body."""
        parts = modulation(conditioning, 6 if self.gated else 4, x.shape[-1], self.dtype)
        (shift1, scale1, *gate1), (shift2, scale2, *gate2) = (
            parts[: len(parts) // 2],
            parts[len(parts) // 2 :],
        )
        h = modulate(layer_norm(self.dtype)(x), shift1, scale1)
        h = self_attention(h, self.num_heads, self.dtype)
        x = x + (gate1[0] * h if self.gated else h)

        h = mlp(modulate(layer_norm(self.dtype)(x), shift2, scale2), self.dtype)
        return x + (gate2[0] * h if self.gated else h), None


class PlainBlock(nn.Module):
    """A block of the vision transformer; one layer more where it attends to the conditioning.

    Attributes:
        num_heads: Attention heads.
        dtype: Type of the computation; normalisation and softmax are in float32.
        cross: Whether to attend to the tokens of the conditioning.
    """

    num_heads: int
    dtype: jnp.dtype
    cross: bool = False

    @nn.compact
    def __call__(self, x: Array, conditioning: Array) -> tuple[Array, None]:
        """Maps tokens ``(batch, tokens, width)`` to the same shape, in the form of a scan body."""
        norm = functools.partial(layer_norm, self.dtype)
        x = x + self_attention(norm("norm_0")(x), self.num_heads, self.dtype)
        if self.cross:
            h = norm("norm_cross")(x)
            x = x + cross_attention(h, conditioning, self.num_heads, self.dtype)
        return x + mlp(norm("norm_1")(x), self.dtype), None


BLOCKS = {
    "adaln_zero": AdaptiveBlock,
    "adaln": functools.partial(AdaptiveBlock, gated=False),
    "cross_attention": functools.partial(PlainBlock, cross=True),
    "in_context": PlainBlock,
}


def self_attention(h: Array, num_heads: int, dtype: jnp.dtype) -> Array:
    """Attention of tokens ``(batch, tokens, width)`` among each other."""
    packed = dense(3 * h.shape[-1], dtype, "qkv")(h)
    q, k, v = einops.rearrange(packed, "b n (three h d) -> three b n h d", three=3, h=num_heads)
    return dense(h.shape[-1], dtype, "proj")(jax.nn.dot_product_attention(q, k, v).reshape(h.shape))


def cross_attention(h: Array, context: Array, num_heads: int, dtype: jnp.dtype) -> Array:
    """Attention of tokens to others, ``(batch, others, width)``."""
    q = einops.rearrange(
        dense(h.shape[-1], dtype, "cross_q")(h), "b n (h d) -> b n h d", h=num_heads
    )
    packed = dense(2 * h.shape[-1], dtype, "cross_kv")(context)
    k, v = einops.rearrange(packed, "b n (two h d) -> two b n h d", two=2, h=num_heads)
    attended = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
    return dense(h.shape[-1], dtype, "cross_proj")(attended)


def mlp(h: Array, dtype: jnp.dtype) -> Array:
    """Two layers, four times as wide in between."""
    inside = nn.gelu(dense(4 * h.shape[-1], dtype, "mlp_0")(h), approximate=True)
    return dense(h.shape[-1], dtype, "mlp_1")(inside)


def dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """A layer of a block."""
    return nn.Dense(features, kernel_init=xavier, dtype=dtype, name=name)


xavier = nn.initializers.xavier_uniform()


def layer_norm(dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """Normalisation, with parameters of its own if it is named; its arithmetic is in float32."""
    own = name is not None
    return nn.LayerNorm(epsilon=1e-6, use_bias=own, use_scale=own, dtype=dtype, name=name)


def modulation(conditioning: Array, parts: int, width: int, dtype: jnp.dtype) -> list[Array]:
    """Computes shifts, scales and gates from the conditioning; zero at initialisation.

    Returns:
        ``parts`` arrays of shape ``(batch or 1, 1, width)``.
    """
    dense = nn.Dense(
        parts * width, kernel_init=nn.initializers.zeros, dtype=dtype, name="modulation"
    )
    return jnp.split(dense(nn.silu(conditioning))[:, None, :], parts, axis=-1)


def modulate(h: Array, shift: Array, scale: Array) -> Array:
    """Scales by ``1 + scale`` and shifts."""
    return h * (1 + scale) + shift
