"""Evaluation metrics: functions of arrays that never see the model which made the samples.

Features and statistics go in, numbers come out; everything is computed on the host in float64. The
classifier that gives features for small images is in ``diffjax.metrics.probe``.
"""

from diffjax.metrics.bits import bits_per_dim, density_bits_per_dim
from diffjax.metrics.files import (
    Reference,
    load_reference,
    save_npz,
    save_reference,
    save_samples,
)
from diffjax.metrics.frechet import (
    frechet_bias,
    frechet_distance,
    frechet_distance_extrapolated,
    frechet_distance_from_statistics,
    intra_frechet_distances,
)
from diffjax.metrics.kernel import (
    KernelDistance,
    gaussian_mmd,
    kernel_distance,
    median_distance,
    polynomial_mmd,
)
from diffjax.metrics.manifold import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    nearest_radii,
    precision_recall,
    realism,
)
from diffjax.metrics.scores import (
    InceptionScore,
    ModeCoverage,
    accuracy,
    class_coverage,
    inception_score,
    mode_coverage,
)
from diffjax.metrics.statistics import FeatureStatistics, require_same_convention, sized_name
from diffjax.metrics.transport import (
    Neighbours,
    energy_distance,
    nearest_neighbours,
    sliced_wasserstein,
    wasserstein_1d,
)

__all__ = [
    "DensityCoverage",
    "FeatureStatistics",
    "InceptionScore",
    "KernelDistance",
    "ModeCoverage",
    "Neighbours",
    "PrecisionRecall",
    "Reference",
    "accuracy",
    "bits_per_dim",
    "class_coverage",
    "density_bits_per_dim",
    "density_coverage",
    "energy_distance",
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_extrapolated",
    "frechet_distance_from_statistics",
    "gaussian_mmd",
    "inception_score",
    "intra_frechet_distances",
    "kernel_distance",
    "load_reference",
    "median_distance",
    "mode_coverage",
    "nearest_neighbours",
    "nearest_radii",
    "polynomial_mmd",
    "precision_recall",
    "realism",
    "require_same_convention",
    "save_npz",
    "save_reference",
    "save_samples",
    "sized_name",
    "sliced_wasserstein",
    "wasserstein_1d",
]
