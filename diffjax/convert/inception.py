"""The FID network under the names of its PyTorch port (pt_inception-2015-12-05, pytorch-fid)."""

from diffjax.convert.common import Published
from diffjax.models.inception import SIZE, Inception

__all__ = ["ANCHOR", "published"]

ANCHOR = "Mixed_7c.branch_pool.conv.weight"
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def published() -> Published:
    """The one network that published scores are made with.

    Returns:
        The module and its names. How many batches a normalisation saw, which checkpoints may hold,
        means nothing any more.
    """
    return Published(
        Inception(),
        (1, SIZE, SIZE, 3),
        _official_name,
        window=lambda name: (),
        ignored=lambda name: name.endswith("num_batches_tracked"),
    )


def _official_name(path: str) -> str:
    """``'Mixed_5b/branch1x1/bn/mean'`` -> ``'Mixed_5b.branch1x1.bn.running_mean'``."""
    if path == "fc_bias":
        return "fc.bias"
    module, leaf = path.rsplit("/", 1)
    return f"{module}.{LEAVES[leaf]}".replace("/", ".")
