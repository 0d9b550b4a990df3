"""The Inception network whose features FID, IS, KID, sFID, precision and recall are made of.

Szegedy et al. 2015 (arXiv:1512.00567), in the form of the graph ``inception-2015-12-05``: average
pools do not count the padding, the last block pools by the maximum, and there are 1008 classes.
Modules have the names of its PyTorch port (mseitzer/pytorch-fid).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.typing import Array

__all__ = ["SIZE", "Inception", "InceptionFeatures"]

SIZE = 299  # Height and width of the input.
SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch: 17 * 17 * 7 = 2023 features


class InceptionFeatures(NamedTuple):
    """What the field's metrics look at, a row an image.

    Attributes:
        pool: Means over space of the last block, ``(batch, 2048)``: FID, KID, precision, recall.
        spatial: Where things are in the middle of the network, ``(batch, 2023)``: sFID.
        logits: ``(batch, 1008)``.
        unbiased_logits: The logits without their bias: what the published inception score uses.
        block_means: Means over space after the first pool, the second, and Mixed_6e: ``(batch,
            64)``, ``(batch, 192)`` and ``(batch, 768)``.
    """

    pool: Array
    spatial: Array
    logits: Array
    unbiased_logits: Array
    block_means: tuple[Array, Array, Array]


class Inception(nn.Module):
    """The network, for inference only.

    Attributes:
        dtype: Type of the computation. Published scores are in float32, and float32 it is, also
            where the hardware would round the inputs of products.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> InceptionFeatures:
        """Computes the features.

        Args:
            x: Images ``(batch, 299, 299, 3)``, about in [-1, 1].

        Returns:
            The features, float32.

        Raises:
            ValueError: If the images have another shape.
        """
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"Inception takes images (batch, {SIZE}, {SIZE}, 3), got {x.shape}")
        spatial, means = None, []
        h = x.astype(self.dtype)
        for name, features, kernel, strides, padding in STEM:
            if name == "pool":
                h = nn.max_pool(h, (3, 3), (2, 2))
                means.append(h.mean((1, 2)))
            else:
                conv = ConvBlock(features, kernel, strides, padding, self.dtype, name=name)
                h = conv(h)
        for name, branches, pool in BLOCKS:
            outputs = MixedBlock(branches, pool, self.dtype, name=name)(h)
            if name == "Mixed_6d":
                spatial = outputs[0][..., :SPATIAL_CHANNELS]
            h = jnp.concatenate(outputs, axis=-1)
            if name == "Mixed_6e":
                means.append(h.mean((1, 2)))
        pool = h.mean((1, 2)).astype(jnp.float32)
        last = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        unbiased = last(pool)
        bias = self.param("fc_bias", nn.initializers.zeros, (1008,))
        return InceptionFeatures(
            pool=pool,
            spatial=spatial.reshape(x.shape[0], -1).astype(jnp.float32),
            logits=unbiased + bias,
            unbiased_logits=unbiased,
            block_means=tuple(mean.astype(jnp.float32) for mean in means),
        )


class ConvBlock(nn.Module):
    """Convolution without bias, normalisation by stored statistics, ReLU.

    Attributes:
        features: Channels of the output.
        kernel: Size of the window.
        strides: Distance between outputs, along both axes.
        padding: ``'SAME'`` or ``'VALID'``.
        dtype: Type of the computation.
    """

    features: int
    kernel: tuple[int, int]
    strides: int
    padding: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``(batch, height, width, channels)`` to ``features`` channels."""
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
            dtype=self.dtype,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, dtype=self.dtype, name="bn")
        return jax.nn.relu(norm(x))


class MixedBlock(nn.Module):
    """Branches of convolutions side by side, and a pool.

    Attributes:
        branches: Of each branch the convolutions, ``(name, features, kernel, strides, padding)``;
            a list in their place stands for convolutions of the same input, side by side.
        pool: ``'average'`` or ``'max'``, of stride 1, with a convolution of so many features, or
            ``'stride'``, of stride 2.
        dtype: Type of the computation.
    """

    branches: tuple
    pool: tuple
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """The output of every branch, the pool's last."""
        outputs = []
        for branch in self.branches:
            ends = [x]
            for step in branch:
                side_by_side = step if isinstance(step[0], tuple) else (step,)
                (h,) = ends
                ends = [
                    ConvBlock(features, kernel, strides, padding, self.dtype, name=name)(h)
                    for name, features, kernel, strides, padding in side_by_side
                ]
            outputs += ends
        kind, features = self.pool
        if kind == "stride":
            return [*outputs, nn.max_pool(x, (3, 3), (2, 2))]
        if kind == "max":
            h = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            h = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        conv = ConvBlock(features, (1, 1), 1, "SAME", self.dtype, name="branch_pool")
        return [*outputs, conv(h)]


def _conv(name, features, height=1, width=1):
    return (name, features, (height, width), 1, "SAME")


def _strided(name, features):
    return (name, features, (3, 3), 2, "VALID")


def _block_a(pool):
    five = (_conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5, 5))
    double = (
        _conv("branch3x3dbl_1", 64),
        _conv("branch3x3dbl_2", 96, 3, 3),
        _conv("branch3x3dbl_3", 96, 3, 3),
    )
    return ((_conv("branch1x1", 64),), five, double), ("average", pool)


def _block_b():
    double = (
        _conv("branch3x3dbl_1", 64),
        _conv("branch3x3dbl_2", 96, 3, 3),
        _strided("branch3x3dbl_3", 96),
    )
    return ((_strided("branch3x3", 384),), double), ("stride", 0)


def _block_c(width):
    seven = (
        _conv("branch7x7_1", width),
        _conv("branch7x7_2", width, 1, 7),
        _conv("branch7x7_3", 192, 7, 1),
    )
    double = (
        _conv("branch7x7dbl_1", width),
        _conv("branch7x7dbl_2", width, 7, 1),
        _conv("branch7x7dbl_3", width, 1, 7),
        _conv("branch7x7dbl_4", width, 7, 1),
        _conv("branch7x7dbl_5", 192, 1, 7),
    )
    return ((_conv("branch1x1", 192),), seven, double), ("average", 192)


def _block_d():
    three = (_conv("branch3x3_1", 192), _strided("branch3x3_2", 320))
    seven = (
        _conv("branch7x7x3_1", 192),
        _conv("branch7x7x3_2", 192, 1, 7),
        _conv("branch7x7x3_3", 192, 7, 1),
        _strided("branch7x7x3_4", 192),
    )
    return (three, seven), ("stride", 0)


def _block_e(pool):
    three = (
        _conv("branch3x3_1", 384),
        (_conv("branch3x3_2a", 384, 1, 3), _conv("branch3x3_2b", 384, 3, 1)),
    )
    double = (
        _conv("branch3x3dbl_1", 448),
        _conv("branch3x3dbl_2", 384, 3, 3),
        (_conv("branch3x3dbl_3a", 384, 1, 3), _conv("branch3x3dbl_3b", 384, 3, 1)),
    )
    return ((_conv("branch1x1", 320),), three, double), (pool, 192)


_POOL = ("pool", 0, (3, 3), 2, "VALID")
STEM = (
    _strided("Conv2d_1a_3x3", 32),
    ("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    _conv("Conv2d_2b_3x3", 64, 3, 3),
    _POOL,
    _conv("Conv2d_3b_1x1", 80),
    ("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    _POOL,
)
BLOCKS = (
    ("Mixed_5b", *_block_a(32)),
    ("Mixed_5c", *_block_a(64)),
    ("Mixed_5d", *_block_a(64)),
    ("Mixed_6a", *_block_b()),
    ("Mixed_6b", *_block_c(128)),
    ("Mixed_6c", *_block_c(160)),
    ("Mixed_6d", *_block_c(160)),
    ("Mixed_6e", *_block_c(192)),
    ("Mixed_7a", *_block_d()),
    ("Mixed_7b", *_block_e("average")),
    ("Mixed_7c", *_block_e("max")),
)
