"""What a config says of latents and of the autoencoder that makes them, checked."""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from diffjax import systems
from diffjax.options import choose, keywords
from diffjax.systems import Autoencoder
from diffjax.systems.autoencoder import ERRORS, Reconstruction

__all__ = ["check", "reconstruction"]


def reconstruction(config: ml_collections.ConfigDict) -> Reconstruction:
    """The loss of an autoencoder."""
    loss = config.loss
    choose("loss.target", loss.target, ERRORS)
    taken = ("x", "decoded", "posterior", "error")
    options = keywords(
        "loss.weighting_options", systems.reconstruction, loss.weighting_options, taken
    )
    return functools.partial(systems.reconstruction, error=loss.target, **options)


def check(config: ml_collections.ConfigDict, autoencoder: Autoencoder | None) -> None:
    """Checks that latents are asked for nothing that only images have, and can be decoded.

    Args:
        config: With ``config.data.scale`` where its data are latents; of images all is right.
        autoencoder: What decodes them, if it was loaded.

    Raises:
        ValueError: It is not so.
    """
    if config.data.get("scale") is None:
        return
    of_pixels = {
        "data.flip": (
            config.data.flip,
            "the mirror of a latent is no latent of the mirror: set it to False here, and to True "
            "where the images are encoded",
        ),
        "sample.threshold": (config.sample.threshold, "latents have no range: set it to ''"),
        "evaluate.likelihood": (config.evaluate.likelihood, "latents have no bits: set it to ''"),
        "loss.augmentation": (config.loss.augmentation, "it deforms images: set it to ''"),
    }
    for field, (value, reason) in of_pixels.items():
        if value:
            raise ValueError(f"config.{field}={value!r}, but the data are latents; {reason}")
    if autoencoder is None:
        return
    named, encoded_by = config.data.autoencoder, config.data.get("encoded_by")
    if encoded_by not in (None, autoencoder.digest):
        raise ValueError(
            f"config.data.autoencoder={named!r} is autoencoder {autoencoder.digest}, but these "
            f"latents are of {encoded_by}: name that one, or encode and train again"
        )
    image = jax.ShapeDtypeStruct((1, *autoencoder.shape), jnp.float32)
    posterior = jax.eval_shape(
        lambda x: autoencoder.network.apply({"params": autoencoder.params}, x, method="encode"),
        image,
    )
    if posterior.mean.shape[-1] != config.data.shape[-1]:
        raise ValueError(
            f"config.data.autoencoder={named!r} has latents of {posterior.mean.shape[-1]} "
            f"channels, but these are of {config.data.shape[-1]}"
        )
