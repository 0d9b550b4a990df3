"""Augmentation that the network is told of: it learns from deformed images to draw plain ones.

Each training image is deformed at random, and the network hears how, as a vector that is zero for
an untouched image. Samples are drawn with zeros, so the deformations do not leak into them. With
few images it keeps a network from learning them by heart.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from diffjax.typing import Array, Key

__all__ = ["AUGMENTATIONS", "Augment", "edm", "warp"]

Augment = Callable[[Array, Key], tuple[Array, Array]]
Border = Literal["reflect", "black"]


def edm(
    images: Array,
    keys: Key,
    *,
    probability: float = 0.12,
    x_flip: bool = True,
    y_flip: bool = True,
    zoom: float = 0.2,
    rotation: float = 180.0,
    stretch: float = 0.2,
    shift: float = 0.125,
    border: Border = "reflect",
) -> tuple[Array, Array]:
    r"""Flips, zooms, rotates, stretches and shifts, each with a probability of its own.

    .. math:: y(u) = x(F\,Z\,R_w\,S\,(u - b)), \quad Z = 2^{-z n}, \quad
              S = R_r\,\mathrm{diag}(2^{-s m}, 2^{s m})\,R_r^\top, \quad b = h k \cdot \mathrm{side}

    ``n, m, k`` are standard normal, the angles ``w, r`` uniform, ``r`` being 0 every other time;
    ``u`` is counted from the image's centre. Told are the draws, as nine numbers: the two flips,
    ``n``, ``cos w - 1``, ``sin w``, ``m cos r``, ``m sin r``, ``k``; zeros for what is not done.

    Karras et al. 2022, appendix F.2 and table 6, but for two things. There the image is doubled by
    a wavelet and then interpolated linearly; here the interpolation is cubic. And there ``r`` goes
    all round, by which a stretch and its inverse are told alike; here it goes half round, which
    stretches the same and tells them apart.

    Args:
        images: In [-1, 1], ``(n, H, W, C)``.
        keys: One per image, ``(n,)``.
        probability: Of each deformation, the left-right flip apart.
        x_flip: Whether to mirror every other image left to right.
        y_flip: Whether to mirror top to bottom.
        zoom: ``z``, standard deviation of the binary logarithm of the size.
        rotation: Largest ``w`` in degrees; 180 is all round.
        stretch: ``s``, standard deviation of the binary logarithm of the stretching.
        shift: ``h``, standard deviation of either shift, as a share of the image's side.
        border: What lies outside the image: its mirror image, or black.

    Returns:
        The images, and what is told of each, ``(n, 9)``.

    Raises:
        ValueError: The border is neither, or the probability is none.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1, got {probability}")
    sides = jnp.array(images.shape[1:3], images.dtype)

    def one(image: Array, key: Key) -> tuple[Array, Array]:
        which, *draws = jax.random.split(key, 6)
        flips = jax.random.bernoulli(draws[0], 0.5, (2,)) * jnp.array([x_flip, y_flip])
        on = jax.random.bernoulli(which, probability, (6,)).at[0].set(True)
        flips, (n, m) = on[:2] * flips, on[2:4] * jax.random.normal(draws[1], (2,))
        w = on[4] * jnp.deg2rad(rotation) * jax.random.uniform(draws[2], minval=-1)
        k = on[5] * jax.random.normal(draws[3], (2,))
        turned, r = jax.random.uniform(draws[4], (2,))
        r = jnp.where(on[3] & (turned < 0.5), jnp.pi * (r - 0.5), 0)

        axes = _rotation(r)
        matrix = jnp.diag(1 - 2.0 * flips[::-1]) * jnp.exp2(-zoom * n) @ _rotation(w)
        matrix @= axes @ jnp.diag(jnp.exp2(stretch * m * jnp.array([1, -1]))) @ axes.T
        angles = jnp.cos(w) - 1, jnp.sin(w), m * jnp.cos(r), m * jnp.sin(r)
        offset = -matrix @ (shift * sides * k[::-1])
        return warp(image, matrix, offset, border), jnp.stack([*flips, n, *angles, *k])

    return jax.vmap(one)(images, keys)


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]])


def warp(image: Array, matrix: Array, offset: Array, border: Border = "reflect") -> Array:
    r"""An affine map of an image, interpolated by cubic convolution: ``y(u) = x(A u + b)``.

    Places are rows and columns, counted in pixels from the image's centre. A whole number of pixels
    is moved exactly. Keys 1981, eq. (15).

    Args:
        image: In [-1, 1], where the result is kept, ``(H, W, C)``.
        matrix: ``A``, ``(2, 2)``.
        offset: ``b``, ``(2,)``.
        border: What lies outside the image: its mirror image (the outermost pixels are not
            repeated), or black.

    Raises:
        ValueError: The border is neither.
    """
    if border not in ("reflect", "black"):
        raise ValueError(f"border must be 'reflect' or 'black', got {border!r}")
    sides = jnp.array(image.shape[:2])
    centre = (sides - 1) / 2
    places = jnp.stack(jnp.indices(image.shape[:2]), -1) - centre
    places = places @ matrix.T + offset + centre
    corner = jnp.floor(places)
    out, total = jnp.zeros_like(image), 0.0
    for i in range(-1, 3):
        for j in range(-1, 3):
            at = corner + jnp.array([i, j])
            weight = _cubic(places - at).prod(-1, keepdims=True)
            if border == "black":
                weight *= ((at >= 0) & (at < sides)).all(-1, keepdims=True)
            row, column = jnp.unstack(_mirrored(at.astype(int), sides), axis=-1)
            out, total = out + weight * image[row, column], total + weight
    return jnp.clip(out - (1 - total), -1, 1)  # what is missing is black


def _mirrored(index: Array, side: Array) -> Array:
    """Indices inside: 3 2 1 | 0 1 2 3 | 2 1 0."""
    period = jnp.maximum(2 * (side - 1), 1)
    index = index % period
    return jnp.minimum(index, period - index)


def _cubic(x: Array) -> Array:
    """Keys's kernel with ``a = -1/2``, of third order."""
    x = jnp.abs(x)
    near = 1 + x**2 * (1.5 * x - 2.5)
    far = 2 + x * (-4 + x * (2.5 - 0.5 * x))
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


AUGMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {"edm": edm}
