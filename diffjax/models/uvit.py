"""The U-ViT of "All are Worth Words: A ViT Backbone for Diffusion Models" (Bao et al., 2022)."""

import re

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.dit import patchify, unpatchify
from diffjax.models.embeddings import LabelEmbedding, as_batch_of_times, sinusoidal_embedding
from diffjax.typing import Array

__all__ = ["UVIT_SIZES", "UViT", "published_uvit"]

UVIT_SIZES = {
    "S": dict(depth=12, width=512, num_heads=8),
    "S-deep": dict(depth=16, width=512, num_heads=8),
    "M": dict(depth=16, width=768, num_heads=12),
    "L": dict(depth=20, width=1024, num_heads=16),
    "H": dict(depth=28, width=1152, num_heads=16, final_conv=False),
}

init = nn.initializers.normal(0.02)
# What PyTorch starts its convolutions with: uniform up to 1 / sqrt(fan_in).
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def published_uvit(size: str, **attributes) -> "UViT":
    """A network of the paper, by its name.

    Args:
        size: Size and patch size as in ``'L/2'`` or ``'S-deep/2'``; sizes are the keys of
            ``UVIT_SIZES``.
        **attributes: Any of ``UViT``'s, instead of the published ones.

    Returns:
        The module.

    Raises:
        ValueError: If there is no such size.
    """
    match = re.fullmatch(r"([\w-]+)/(\d+)", size)
    if match is None or match[1] not in UVIT_SIZES:
        raise ValueError(
            f"unknown U-ViT {size!r}; write a size of {', '.join(UVIT_SIZES)}, a slash and the "
            "patch size, for example 'M/4'"
        )
    return UViT(**{**UVIT_SIZES[match[1]], "patch_size": int(match[2]), **attributes})


class UViT(nn.Module):
    """Predicts the noise (or whatever it is trained on) in an image or a latent.

    A plain vision transformer whose tokens are the label, the time and the patches; block ``k``
    from the start is joined to block ``k`` from the end by a long skip connection, as in a U-Net.
    The defaults are the paper's CIFAR-10 network.

    Attributes:
        patch_size: Side of a patch; divides the image's height and width.
        width: Length of a token, divisible by ``num_heads``.
        depth: Number of blocks beside the middle one; even.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLPs in units of ``width``.
        qkv_bias: Whether queries, keys and values have biases.
        mlp_time_embed: Whether the time's sinusoids pass through an MLP.
        time_offset: Added to the time before it is embedded: 1 where the authors count the steps
            of their chain from 1.
        final_conv: Whether a 3x3 convolution of the image follows, against seams between patches.
        skip: Whether there are long skip connections.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        null_label: Whether there is a null label; without it, every image needs a label.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
        remat: Whether to recompute the inside of each block in the backward pass; saves memory.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    patch_size: int = 2
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: int = 4
    qkv_bias: bool = False
    mlp_time_embed: bool = False
    time_offset: float = 0.0
    final_conv: bool = True
    skip: bool = True
    num_classes: int = 0
    null_label: bool = True
    learned_variance: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, time: Array, labels: Array | None = None, *, train: bool = False
    ) -> Array:
        """Applies the network.

        Args:
            x: Images ``(batch, height, width, channels)``; always of the same size, as the
                positions are learned.
            time: Step index in 0..999 (fractions allowed), ``()`` or ``(batch,)``.
            labels: Class indices ``(batch,)``, or None for the null label.
            train: Without effect, as the published network has no dropout; the other networks
                share the signature.

        Returns:
            Float32 of ``x``'s height and width.

        Raises:
            ValueError: If the shapes do not fit the network.
        """
        del train
        self._check(x)
        batch, height, _, channels = x.shape
        extras = self._extra_tokens(time, labels, batch)
        patches = nn.Dense(
            self.width,
            kernel_init=torch_init,
            bias_init=_uniform(self.patch_size**2 * channels),
            dtype=self.dtype,
            name="patch_embed",
        )(patchify(x.astype(self.dtype), self.patch_size))
        tokens = jnp.concatenate([*extras, patches], axis=1)
        positions = self.param("pos_embed", init, (1, *tokens.shape[1:]))
        tokens += positions.astype(self.dtype)

        tokens = self._blocks(tokens)
        channels *= 2 if self.learned_variance else 1
        tokens = layer_norm(self.dtype, "norm_out")(tokens)
        pixels = nn.Dense(
            self.patch_size**2 * channels, kernel_init=init, dtype=self.dtype, name="out"
        )(tokens[:, len(extras) :])
        out = unpatchify(pixels, self.patch_size, height)
        if self.final_conv:
            out = nn.Conv(
                channels,
                (3, 3),
                kernel_init=torch_init,
                bias_init=_uniform(9 * channels),
                dtype=self.dtype,
                name="final_conv",
            )(out)
        return out.astype(jnp.float32)

    def _extra_tokens(self, time: Array, labels: Array | None, batch: int) -> list[Array]:
        """The tokens of label, if there are classes, and time, ``(batch, 1, width)`` each."""
        time = as_batch_of_times(time, batch) + self.time_offset
        h = sinusoidal_embedding(time, self.width, "adm")
        h = h.astype(self.dtype)
        if self.mlp_time_embed:

            def dense(features, name):
                return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

            h = nn.silu(dense(4 * self.width, "time_dense_0")(h))
            h = dense(self.width, "time_dense_1")(h)
        embed = LabelEmbedding(
            self.num_classes, self.width, null=self.null_label, dtype=self.dtype, name="label"
        )
        label = embed(labels, batch)
        tokens = [label, h] if self.num_classes else [h]
        return [jnp.broadcast_to(token[:, None], (batch, 1, self.width)) for token in tokens]

    def _blocks(self, tokens: Array) -> Array:
        """The first half, the middle, and the second half, which takes the first's outputs back."""
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        settings = dict(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
        )

        def half(name, in_axes):
            # One traced block for all layers: compile time does not grow with depth.
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                length=self.depth // 2,
            )
            return layers(**settings, name=name)

        if not self.depth:
            return block(**settings, name="middle_block")(tokens, None)[0]
        tokens, skips = half("in_blocks", nn.broadcast)(tokens, None)
        tokens, _ = block(**settings, name="middle_block")(tokens, None)
        if self.skip:
            return half("out_blocks", 0)(tokens, skips[::-1])[0]
        return half("out_blocks", nn.broadcast)(tokens, None)[0]

    def _check(self, x: Array):
        """Raises a ValueError if the image or the widths do not fit."""
        if x.ndim != 4:
            raise ValueError(f"UViT takes images (batch, height, width, channels), got {x.shape}")
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise ValueError(
                f"UViT needs a height and width divisible by its patch size {self.patch_size}, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"UViT needs a width divisible by its heads, got {self.width} and {self.num_heads}"
            )
        if self.depth % 2:
            raise ValueError(f"UViT needs an even depth, got {self.depth}")


class Block(nn.Module):
    """A transformer block, which may first take in what an earlier block put out.

    Attributes:
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP in units of the tokens' length.
        qkv_bias: Whether queries, keys and values have biases.
        dtype: Type of the computation; normalisation and softmax are in float32.
    """

    num_heads: int
    mlp_ratio: int
    qkv_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, skip: Array | None) -> tuple[Array, Array]:
        """Maps tokens ``(batch, tokens, width)`` to the same shape, twice: a scan's body."""
        width = x.shape[-1]

        def dense(features, name, use_bias=True):
            return nn.Dense(
                features, use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name
            )

        if skip is not None:
            x = dense(width, "skip")(jnp.concatenate([x, skip], axis=-1))
        h = layer_norm(self.dtype, "norm_0")(x)
        q, k, v = einops.rearrange(
            dense(3 * width, "qkv", self.qkv_bias)(h),
            "b n (three h d) -> three b n h d",
            three=3,
            h=self.num_heads,
        )
        x = x + dense(width, "proj")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        h = dense(self.mlp_ratio * width, "mlp_0")(layer_norm(self.dtype, "norm_1")(x))
        x = x + dense(width, "mlp_1")(nn.gelu(h, approximate=False))
        return x, x


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """The normalisation used everywhere in the network; its arithmetic is in float32."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform up to ``1 / sqrt(fan_in)``: what PyTorch starts biases with."""

    def draw(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
