"""NCSN++ and DDPM++, of "Score-Based Generative Modeling through SDEs" (Song et al., 2021).

Also the networks of EDM (Karras et al., 2022), which are these with labels and other inputs.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffjax.models.embeddings import (
    AugmentationEmbedding,
    LabelEmbedding,
    as_batch_of_times,
    sinusoidal_embedding,
)
from diffjax.models.ncsnpp_blocks import (
    BOX,
    AttentionBlock,
    FourierFeatures,
    PyramidStep,
    ResBlock,
    almost_zero_init,
    group_norm,
    init,
)
from diffjax.models.resampling import downsample, upsample
from diffjax.typing import Array

__all__ = ["NCSNpp"]

# Traced once for all blocks of the same shapes: there are up to 80 of them.
SharedResBlock = nn.jit(ResBlock, static_argnums=3)


class NCSNpp(nn.Module):
    """Predicts the score (or whatever it is trained on) of an image.

    A U-Net whose residual blocks do the resampling, with filters if asked, and whose shortcuts are
    rescaled to keep the variance. Pyramids may accompany it: of the input on the way down, of the
    output on the way up. The defaults are DDPM++ for CIFAR-10; NCSN++ has ``fir_kernel=(1, 3, 3,
    1)`` and ``progressive_input='residual'``, and for 256x256 pixels ``'input_skip'`` with
    ``progressive='output_skip'``; the deep variants double ``num_res_blocks``.

    Attributes:
        ch: Width of the first level; a multiple of 4.
        ch_mult: Width of each level in units of ``ch``. Each level halves the resolution of the
            one before, so the image must be divisible by ``2 ** (len(ch_mult) - 1)``.
        num_res_blocks: Residual blocks a level on the way down (one more on the way up).
        attn_resolutions: Heights, in pixels, with attention: after every block on the way down,
            after the last block of the level on the way up.
        dropout: Rate inside the residual blocks, when training.
        fir_kernel: Taps of the filter of all resampling; none for nearest pixels and means.
        progressive: What the output is made of: ``'none'``, the last level; ``'output_skip'``, the
            sum of an image from every level; ``'residual'``, as well as feeding them back.
        progressive_input: What the levels see of the input: ``'none'``; ``'input_skip'``, the
            image in their size; ``'residual'``, a pyramid of features of it.
        progressive_combine: How ``'input_skip'`` joins: ``'sum'`` or ``'cat'``.
        skip_rescale: Whether sums of two branches are divided by the root of 2.
        time_embedding: What the time is: ``'positional'``, an index of 0..999; ``'fourier'``, a
            number of order one; ``'log_fourier'``, a noise level, whose log is taken.
        fourier_scale: Standard deviation of the Fourier frequencies.
        centered: Whether images are in [-1, 1]; those in [0, 1] are mapped there by the network.
        scale_by_sigma: Whether the output is divided by the noise level: the time itself under
            ``'log_fourier'``, that of ``sigmas`` under ``'positional'``.
        sigmas: Smallest level, largest and how many: a geometric scale, index 0 the *largest*.
        num_classes: Number of classes, 0 for an unconditional network. Index ``num_classes`` is
            the null label.
        learned_variance: Whether to double the output channels; the second half is for the
            variance of the reverse process.
        dtype: Type of the computation; parameters, normalisation and softmax are in float32.
    """

    ch: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    fir_kernel: Sequence[float] = ()
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_combine: Literal["sum", "cat"] = "sum"
    skip_rescale: bool = True
    time_embedding: Literal["positional", "fourier", "log_fourier"] = "positional"
    fourier_scale: float = 16.0
    centered: bool = True
    scale_by_sigma: bool = False
    sigmas: tuple[float, float, int] = (0.01, 50.0, 1000)
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
            time: As ``time_embedding`` says, ``()`` or ``(batch,)``.
            labels: Class indices ``(batch,)``, or None for the null label.
            augmentation: How each image was augmented, ``(batch, k)`` (EDM: 9 numbers), or None for
                not at all, which is the same as zeros.
            train: Whether dropout is on (then ``rngs={'dropout': key}`` is needed).

        Returns:
            Float32 of ``x``'s height and width.

        Raises:
            ValueError: If the shapes do not fit the network.
        """
        self._check(x)
        time = as_batch_of_times(time, x.shape[0])
        conditioning = self._conditioning(time, labels, augmentation, x.shape[0])
        x = x if self.centered else 2 * x - 1

        h = self._down(x.astype(self.dtype), conditioning, train)
        channels = x.shape[-1] * (2 if self.learned_variance else 1)
        out = self._up(*h, conditioning, channels, train).astype(jnp.float32)
        if self.scale_by_sigma:
            out /= self._noise_level(time)[:, None, None, None]
        return out

    def _down(self, x: Array, conditioning: Array, train: bool) -> tuple[Array, list[Array]]:
        """The way down and the middle: the lowest features, and those that the way up joins."""
        block, attention = self._blocks(conditioning, train)
        rescale = self._rescale
        pyramid = x
        skips = [self._conv(self.ch, "conv_in")(x)]
        for level, mult in enumerate(self.ch_mult):
            if level > 0:
                place = f"down_{level - 1}"
                h = block(skips[-1], skips[-1].shape[-1], f"{place}_downsample", "down")
                if self.progressive_input == "input_skip":
                    pyramid = downsample(pyramid, self.fir_kernel or BOX)
                    dense = nn.Dense(
                        h.shape[-1],
                        kernel_init=init,
                        dtype=self.dtype,
                        name=f"{place}_pyramid",
                    )
                    seen = dense(pyramid)
                    join = self.progressive_combine == "cat"
                    h = jnp.concatenate([seen, h], axis=-1) if join else seen + h
                elif self.progressive_input == "residual":
                    step = self._pyramid_step(h.shape[-1], "down", f"{place}_pyramid")
                    h = pyramid = rescale * (step(pyramid) + h)
                skips.append(h)
            for j in range(self.num_res_blocks):
                h = block(skips[-1], self.ch * mult, f"down_{level}_block_{j}")
                if h.shape[1] in self.attn_resolutions:
                    h = attention(name=f"down_{level}_attention_{j}")(h)
                skips.append(h)
        h = block(h, h.shape[-1], "middle_block_0")
        h = attention(name="middle_attention")(h)
        return block(h, h.shape[-1], "middle_block_1"), skips

    def _up(
        self, h: Array, skips: list[Array], conditioning: Array, channels: int, train: bool
    ) -> Array:
        """The way up, to the output."""
        block, attention = self._blocks(conditioning, train)
        pyramid = None
        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for j in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, self.ch * mult, f"up_{level}_block_{j}")
            if h.shape[1] in self.attn_resolutions:
                h = attention(name=f"up_{level}_attention")(h)
            place = f"up_{level}_pyramid"
            if self.progressive == "output_skip":
                image = self._conv_out(h, channels, place)
                if pyramid is not None:
                    image += upsample(pyramid, self.fir_kernel or BOX)
                pyramid = image
            elif self.progressive == "residual" and pyramid is None:
                pyramid = self._conv_out(h, h.shape[-1], place, init)
            elif self.progressive == "residual":
                step = self._pyramid_step(h.shape[-1], "up", place)
                h = pyramid = self._rescale * (step(pyramid) + h)
            if level > 0:
                h = block(h, h.shape[-1], f"up_{level}_upsample", "up")
        if self.progressive == "output_skip":
            return pyramid
        return self._conv_out(h, channels, "out")

    @property
    def _rescale(self) -> float:
        return float(np.sqrt(0.5)) if self.skip_rescale else 1.0

    def _blocks(self, conditioning: Array, train: bool):
        """Residual blocks and attention with what all of them share."""

        def block(h, features, name, resample=""):
            module = SharedResBlock(
                features,
                resample=resample,
                kernel=self.fir_kernel,
                dropout=self.dropout,
                rescale=self._rescale,
                dtype=self.dtype,
                name=name,
            )
            return module(h, conditioning, train)

        return block, functools.partial(AttentionBlock, rescale=self._rescale, dtype=self.dtype)

    def _pyramid_step(self, features: int, resample: str, name: str) -> PyramidStep:
        return PyramidStep(features, resample, self.fir_kernel, self.dtype, name=name)

    def _conv(self, features: int, name: str, kernel_init=init) -> nn.Conv:
        return nn.Conv(features, (3, 3), kernel_init=kernel_init, dtype=self.dtype, name=name)

    def _conv_out(self, h: Array, features: int, name: str, kernel_init=almost_zero_init) -> Array:
        """Features to an image (or, with another start, to features)."""
        h = nn.swish(group_norm(h, self.dtype, f"{name}_norm"))
        return self._conv(features, f"{name}_conv", kernel_init)(h)

    def _conditioning(
        self, time: Array, labels: Array | None, augmentation: Array | None, batch: int
    ) -> Array:
        """Embeds time, label and augmentation into one vector of ``4 ch``, for every block."""
        if self.time_embedding == "positional":
            h = sinusoidal_embedding(time, self.ch, "ddpm")
        else:
            time = jnp.log(time) if self.time_embedding == "log_fourier" else time
            h = FourierFeatures(self.ch, self.fourier_scale, name="fourier")(time)
        features = h.shape[-1]
        # As a linear layer on one-hot labels of the length sqrt(num_classes) would start.
        stddev = np.sqrt(2 * self.num_classes / (self.num_classes + features))
        embed = LabelEmbedding(
            self.num_classes, features, stddev=float(stddev), dtype=self.dtype, name="label"
        )
        told = AugmentationEmbedding(features, dtype=self.dtype, name="augmentation")
        h += embed(labels, batch) + told(augmentation)

        def dense(size, name):
            return nn.Dense(size, kernel_init=init, dtype=self.dtype, name=name)

        h = dense(4 * self.ch, "time_dense_0")(h)
        return dense(4 * self.ch, "time_dense_1")(nn.swish(h))

    def _noise_level(self, time: Array) -> Array:
        """What the output is divided by, of ``time``'s shape."""
        if self.time_embedding == "log_fourier":
            return time
        smallest, largest, number = self.sigmas
        return largest * jnp.exp(time / (number - 1) * np.log(smallest / largest))

    def _check(self, x: Array):
        """Raises a ValueError if the image, the widths or the options do not fit."""
        if x.ndim != 4:
            raise ValueError(f"NCSNpp takes images (batch, height, width, channels), got {x.shape}")
        factor = 2 ** (len(self.ch_mult) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"NCSNpp with {len(self.ch_mult)} levels needs a height and width divisible by "
                f"{factor}, got {x.shape[1]}x{x.shape[2]}; pad the images or shorten ch_mult"
            )
        if self.ch % 4:
            raise ValueError(f"NCSNpp needs ch divisible by 4, got {self.ch}")
        if len(self.fir_kernel) == 1:
            raise ValueError("NCSNpp needs a fir_kernel of at least two taps, or none")
        known = {
            "progressive": ("none", "output_skip", "residual"),
            "progressive_input": ("none", "input_skip", "residual"),
            "progressive_combine": ("sum", "cat"),
            "time_embedding": ("positional", "fourier", "log_fourier"),
        }
        for option, choices in known.items():
            if getattr(self, option) not in choices:
                raise ValueError(
                    f"NCSNpp has no {option} {getattr(self, option)!r}; "
                    f"choose one of {', '.join(choices)}"
                )
        if self.scale_by_sigma and (self.learned_variance or self.time_embedding == "fourier"):
            raise ValueError(
                "NCSNpp divides a score by its noise level, which it knows from time_embedding "
                "'log_fourier' or 'positional', and has no learned variance then: set "
                "scale_by_sigma=False"
            )
