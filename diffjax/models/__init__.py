"""Networks, as ``flax.linen`` modules with one signature.

    variables = module.init(key, x, time, labels)
    out = module.apply(variables, x, time, labels, train=True, rngs={'dropout': key})

``x`` is float NHWC, ``time`` a scalar or one per sample in the network's own units, ``labels`` the
class indices or None. The result is float32 of ``x``'s shape, with twice the channels when the
network also learns the variance. A conditional network (``num_classes > 0``) keeps the index
``num_classes`` for "no label", which is also what None means. Networks know no schedule.

The autoencoder of latent models, the classifier of small images and the Inception network of FID
have signatures of their own.
"""

from diffjax.models.adm import ADM, ADMClassifier, ADMSuperResolution
from diffjax.models.dit import DIT_SIZES, DiT, published_dit
from diffjax.models.mlp import MLP
from diffjax.models.ncsnpp import NCSNpp
from diffjax.models.noise_level import NoiseLevelConv, NoiseLevelMLP
from diffjax.models.unet import UNet
from diffjax.models.uvit import UVIT_SIZES, UViT, published_uvit
from diffjax.models.vae import AutoencoderKL, Posterior

__all__ = [
    "ADM",
    "DIT_SIZES",
    "MLP",
    "UVIT_SIZES",
    "ADMClassifier",
    "ADMSuperResolution",
    "AutoencoderKL",
    "DiT",
    "NCSNpp",
    "NoiseLevelConv",
    "NoiseLevelMLP",
    "Posterior",
    "UNet",
    "UViT",
    "published_dit",
    "published_uvit",
]
