"""The U-Net of Improved DDPM and of ADM, the guided diffusion model.

"Improved Denoising Diffusion Probabilistic Models" (Nichol & Dhariwal, 2021) and "Diffusion Models
Beat GANs on Image Synthesis" (Dhariwal & Nichol, 2021). One network with flags: several attention
heads, the conditioning as scale and shift of a normalisation, resampling inside residual blocks.
The super-resolution network is the same with a second image, the classifier its first half.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.adm_blocks import (
    AttentionBlock,
    AttentionPool,
    ResBlock,
    conv,
    dense,
    group_norm,
    resampled,
)
from diffjax.models.embeddings import (
    AugmentationEmbedding,
    LabelEmbedding,
    as_batch_of_times,
    sinusoidal_embedding,
)
from diffjax.typing import Array

__all__ = ["ADM", "ADMClassifier", "ADMSuperResolution"]


class Pyramid(nn.Module):
    """What the networks of this file share: the way down the resolutions, and the middle.

    Attributes:
        ch: Unit of width; every level's is a multiple of ``num_groups``.
        ch_mult: Width of each level in units of ``ch``. Each level halves the resolution of the
            one before, so the image must be divisible by ``2 ** (len(ch_mult) - 1)``.
        num_res_blocks: Residual blocks a level on the way down (one more on the way up).
        attn_resolutions: Heights, in pixels, at which every block is followed by attention.
        num_heads: Attention heads, where ``head_channels`` is 0.
        head_channels: Channels a head, instead of a number of heads.
        new_attention_order: Whether the attention blocks pack all queries before all keys; False
            packs them head by head. Only converted weights can tell.
        scale_shift_norm: Whether the conditioning scales and shifts what the second normalisation
            of a block gives; False adds it before that normalisation.
        resblock_updown: Whether residual blocks change the resolution.
        conv_resample: Where they do not: whether a convolution does, or only a mean down and a
            repetition up.
        dropout: Rate inside the residual blocks, when training.
        num_groups: Groups of every normalisation.
        time_scale: What the time is multiplied by before it is embedded: 0.25 where the index of a
            chain of 4000 steps is to look like one of 1000.
        remat: Whether to recompute the inside of each residual block in the backward pass; saves
            memory.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    ch: int = 128
    ch_mult: Sequence[float] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (16, 8)
    num_heads: int = 4
    head_channels: int = 0
    new_attention_order: bool = False
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    dropout: float = 0.0
    num_groups: int = 32
    time_scale: float = 1.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def _width(self, level: int) -> int:
        return int(self.ch * self.ch_mult[level])

    def _time(self, time: Array, batch: int) -> Array:
        """Embeds the time as a vector of length ``4 ch``."""
        time = self.time_scale * as_batch_of_times(time, batch)
        h = sinusoidal_embedding(time, self.ch, "adm")
        h = dense(self.ch, 4 * self.ch, self.dtype, "time_dense_0")(h)
        return dense(4 * self.ch, 4 * self.ch, self.dtype, "time_dense_1")(nn.silu(h))

    def _res_block(
        self, h: Array, name: str, conditioning: Array, train: bool, width=0, resample=""
    ):
        block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        return block(
            width or h.shape[-1],
            resample=resample,
            scale_shift_norm=self.scale_shift_norm,
            dropout=self.dropout,
            num_groups=self.num_groups,
            dtype=self.dtype,
            name=name,
        )(h, conditioning, train)

    def _attention(self, h: Array, name: str, num_heads: int) -> Array:
        if self.head_channels:
            num_heads = h.shape[-1] // self.head_channels
        return AttentionBlock(
            num_heads, self.new_attention_order, self.num_groups, self.dtype, name=name
        )(h)

    def _resample(self, h: Array, name: str, direction: str, conditioning: Array, train: bool):
        if self.resblock_updown:
            return self._res_block(h, name, conditioning, train, resample=direction)
        if not self.conv_resample:
            return resampled(h, direction)
        # The convolution down pads by one on both sides, unlike "SAME".
        strides = 2 if direction == "down" else 1
        h = h if direction == "down" else resampled(h, "up")
        return conv(h.shape[-1], h.shape[-1], self.dtype, name, strides=strides)(h)

    def _down(self, x: Array, conditioning: Array, train: bool) -> list[Array]:
        """The way down: the result of every stage, finest first."""
        h = conv(x.shape[-1], self._width(0), self.dtype, "conv_in")(x.astype(self.dtype))
        stages = [h]
        for level in range(len(self.ch_mult)):
            if level > 0:
                h = self._resample(h, f"down_{level - 1}_downsample", "down", conditioning, train)
                stages.append(h)
            for j in range(self.num_res_blocks):
                name = f"down_{level}_block_{j}"
                h = self._res_block(h, name, conditioning, train, self._width(level))
                if h.shape[1] in self.attn_resolutions:
                    h = self._attention(h, f"down_{level}_attention_{j}", self.num_heads)
                stages.append(h)
        return stages

    def _middle(self, h: Array, conditioning: Array, train: bool) -> Array:
        h = self._res_block(h, "middle_block_0", conditioning, train)
        h = self._attention(h, "middle_attention", self.num_heads)
        return self._res_block(h, "middle_block_1", conditioning, train)

    def _check(self, x: Array):
        """Raises a ValueError if the image or the widths do not fit."""
        kind, levels = type(self).__name__, len(self.ch_mult)
        if x.ndim != 4:
            raise ValueError(f"{kind} takes images (batch, height, width, channels), got {x.shape}")
        factor = 2 ** (levels - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"{kind} with {levels} levels needs a height and width divisible by {factor}, got "
                f"{x.shape[1]}x{x.shape[2]}; pad the images or shorten ch_mult"
            )
        for width in map(self._width, range(levels)):
            if width % self.num_groups:
                raise ValueError(
                    f"{kind} needs widths ch * ch_mult divisible by its {self.num_groups} groups, "
                    f"got {width}"
                )


class ADM(Pyramid):
    """Predicts the noise (or whatever it is trained on) in an image, for a class if there are any.

    Two passes over a pyramid of resolutions, down and up, joined by skip connections at every
    stage. The defaults are those of ADM at 64x64 but for the narrower ``ch`` and attention;
    ``scale_shift_norm=True, resblock_updown=False`` is Improved DDPM.

    Attributes:
        num_heads_upsample: Attention heads on the way up; 0 for as many as on the way down.
        channels: Channels of the output; None for those of the input. They differ when the input
            carries a conditioning image beside the noisy one.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        null_label: Whether there is a null label. The published networks have none, so they need
            labels and know no classifier-free guidance.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
    """

    num_heads_upsample: int = 0
    channels: int | None = None
    num_classes: int = 0
    null_label: bool = True
    learned_variance: bool = False

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
        return self._apply(x, self.channels or x.shape[-1], time, labels, augmentation, train)

    def _apply(
        self,
        x: Array,
        channels: int,
        time: Array,
        labels: Array | None,
        augmentation: Array | None,
        train: bool,
    ) -> Array:
        self._check(x)
        embed = LabelEmbedding(
            self.num_classes, 4 * self.ch, null=self.null_label, dtype=self.dtype, name="label"
        )
        told = AugmentationEmbedding(4 * self.ch, dtype=self.dtype, name="augmentation")
        conditioning = self._time(time, x.shape[0]) + embed(labels, x.shape[0])
        conditioning += told(augmentation)
        stages = self._down(x, conditioning, train)
        h = self._middle(stages[-1], conditioning, train)

        for level in reversed(range(len(self.ch_mult))):
            for j in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, stages.pop()], axis=-1)
                name = f"up_{level}_block_{j}"
                h = self._res_block(h, name, conditioning, train, self._width(level))
                if h.shape[1] in self.attn_resolutions:
                    heads = self.num_heads_upsample or self.num_heads
                    h = self._attention(h, f"up_{level}_attention_{j}", heads)
            if level > 0:
                h = self._resample(h, f"up_{level}_upsample", "up", conditioning, train)

        h = nn.silu(group_norm(self.num_groups, self.dtype, "norm_out")(h))
        channels *= 2 if self.learned_variance else 1
        out = conv(h.shape[-1], channels, self.dtype, "conv_out", zero=True)
        return out(h).astype(jnp.promote_types(self.dtype, jnp.float32))


class ADMSuperResolution(ADM):
    """The same network, which also sees a smaller image of the same scene.

    The small image is enlarged bilinearly and given to the network beside the noisy one.
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        time: Array,
        labels: Array | None = None,
        *,
        low_res: Array,
        augmentation: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Applies the network.

        Args:
            x: Images ``(batch, height, width, channels)``.
            time: Step index in 0..999 (fractions allowed), ``()`` or ``(batch,)``.
            labels: Class indices ``(batch,)``, or None for the null label.
            low_res: The small images, ``(batch, any height, any width, channels)``.
            augmentation: What was done to ``x``, ``(batch, k)`` (see ``augmentation``), or None for
                nothing, which is the same as zeros.
            train: Whether dropout is on (then ``rngs={'dropout': key}`` is needed).

        Returns:
            Float32 of ``x``'s height and width.

        Raises:
            ValueError: If the shapes do not fit the network or each other.
        """
        if low_res.ndim != 4 or low_res.shape[0] != x.shape[0]:
            raise ValueError(
                f"low_res must be one image a sample, for {x.shape} got {low_res.shape}"
            )
        enlarged = jax.image.resize(
            low_res, (*x.shape[:3], low_res.shape[-1]), "bilinear", antialias=False
        )
        both = jnp.concatenate([x, enlarged.astype(x.dtype)], axis=-1)
        return self._apply(both, self.channels or x.shape[-1], time, labels, augmentation, train)


class ADMClassifier(Pyramid):
    """Says of a noisy image what it shows, for classifier guidance: the first half of the U-Net.

    Attributes:
        num_classes: Number of classes.
        pool: How the last map becomes logits: ``'adaptive'``, its mean; ``'attention'``, what a
            mean token attends to; ``'spatial'`` and ``'spatial_v2'``, two layers on the means of
            the maps of all stages.
    """

    num_classes: int = 1000
    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "attention"

    @nn.compact
    def __call__(self, x: Array, time: Array, *, train: bool = False) -> Array:
        """Classifies noisy images.

        Args:
            x: Images ``(batch, height, width, channels)``.
            time: Step index in 0..999 (fractions allowed), ``()`` or ``(batch,)``.
            train: Whether dropout is on (then ``rngs={'dropout': key}`` is needed).

        Returns:
            Logits ``(batch, num_classes)``, float32.

        Raises:
            ValueError: If the shapes do not fit the network, or there is no such pool.
        """
        self._check(x)
        conditioning = self._time(time, x.shape[0])
        stages = self._down(x, conditioning, train)
        h = self._middle(stages[-1], conditioning, train)
        norm = functools.partial(group_norm, self.num_groups, self.dtype)
        match self.pool:
            case "adaptive":
                h = nn.silu(norm("norm_out")(h)).mean((1, 2))
                h = dense(h.shape[-1], self.num_classes, self.dtype, "out", zero=True)(h)
            case "attention":
                h = nn.silu(norm("norm_out")(h))
                heads = h.shape[-1] // self.head_channels if self.head_channels else self.num_heads
                h = AttentionPool(self.num_classes, heads, self.dtype, name="pool")(h)
            case "spatial" | "spatial_v2":
                h = jnp.concatenate([stage.mean((1, 2)) for stage in (*stages, h)], axis=-1)
                h = dense(h.shape[-1], 2048, self.dtype, "hidden")(h)
                h = nn.relu(h) if self.pool == "spatial" else nn.silu(norm("norm_out")(h))
                h = dense(2048, self.num_classes, self.dtype, "out")(h)
            case _:
                raise ValueError(
                    "pool must be 'adaptive', 'attention', 'spatial' or 'spatial_v2', got "
                    f"{self.pool!r}"
                )
        return h.astype(jnp.promote_types(self.dtype, jnp.float32))
