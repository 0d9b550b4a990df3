"""Reference statistics and samples as the npz files that the field exchanges.

What a file holds is seen from its members, so that all published forms are read alike:

| members | written by |
| --- | --- |
| ``mu sigma n convention`` (``mu_s sigma_s arr_0 data_hash``) | this library |
| ``mu sigma mu_s sigma_s arr_0`` | the ADM evaluation suite |
| ``mu sigma`` | pytorch-fid, EDM, clean-fid |
| ``pool_3``: raw activations | score_sde |
| ``arr_0`` (``arr_1``): images (labels) | samples for the ADM suite |
"""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics.statistics import FeatureStatistics

__all__ = ["Reference", "load_reference", "save_npz", "save_reference", "save_samples"]

_ADM_CONVENTION = "tensorflow"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What a file says about a set of images; a part that it lacks is None.

    Attributes:
        pool: Statistics of the pooled features (FID).
        spatial: Statistics of the spatial features (sFID).
        activations: The pooled features themselves, ``(n, d)``.
        images: uint8 ``(n, height, width, channels)``; a subset, in ADM's references.
        labels: Integer labels of the images, ``(n,)``.
        data_hash: Identifies the data behind the statistics, or empty.
    """

    pool: FeatureStatistics | None = None
    spatial: FeatureStatistics | None = None
    activations: np.ndarray | None = None
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    data_hash: str = ""


def save_reference(path: str | os.PathLike, reference: Reference) -> None:
    """Writes a reference with its sample count and convention, readable by the ADM suite too.

    Args:
        path: Where to; exactly this name.
        reference: Must hold ``pool``. ``activations`` are not written: their statistics are.

    Raises:
        ValueError: No pooled statistics, or spatial ones of another convention or count.
    """
    pool, spatial = reference.pool, reference.spatial
    if pool is None:
        raise ValueError("a reference needs statistics of pooled features (pool)")
    members = {"mu": pool.mean, "sigma": pool.covariance, "convention": np.array(pool.convention)}
    if pool.count is not None:
        members["n"] = np.array(pool.count)
    if spatial is not None:
        if (spatial.convention, spatial.count) != (pool.convention, pool.count):
            raise ValueError(
                "pooled and spatial statistics must come from one pass: got "
                f"{pool.convention!r} n={pool.count} and {spatial.convention!r} n={spatial.count}"
            )
        members |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if reference.images is not None:
        members["arr_0"] = _check_images(reference.images)
    if reference.labels is not None:
        members["arr_1"] = np.asarray(reference.labels)
    if reference.data_hash:
        members["data_hash"] = np.array(reference.data_hash)
    save_npz(path, members)


def load_reference(path: str | os.PathLike, convention: str | None = None) -> Reference:
    """Reads any of the published forms of reference statistics or samples.

    Args:
        path: An npz file.
        convention: Network and preprocessing behind the statistics, for files that do not say it.
            ADM's are known to be "tensorflow"; for other published files it must be given.

    Returns:
        What the file holds.

    Raises:
        ValueError: Not an npz file of a known form, damaged statistics, or a convention that is
            missing or contradicts the file.
    """
    members = _read(path)
    images, labels = members.get("arr_0"), members.get("arr_1")
    if "mu" not in members and "pool_3" not in members:
        if images is None:
            found = ", ".join(sorted(members)[:4]) + (" and others" if len(members) > 4 else "")
            raise ValueError(
                f"{path}: no known members; found {found or 'none'}, expected mu and sigma, "
                "pool_3, or arr_0"
            )
        return Reference(images=_check_images(images), labels=labels)

    stored = str(members["convention"]) if "convention" in members else None
    if stored is None and "mu_s" in members:
        stored = _ADM_CONVENTION
    if stored is not None and convention not in (None, stored):
        raise ValueError(f"{path}: made with convention {stored!r}, not {convention!r}")
    convention = stored or convention
    if convention is None:
        raise ValueError(
            f"{path}: does not record its convention; give it (config.evaluate.convention): "
            "'pytorch' for pytorch-fid's files, 'tensorflow' for EDM's, 'clean' for clean-fid's"
        )
    count = int(members["n"]) if "n" in members else None
    activations = members.get("pool_3")
    if activations is not None:
        pool = FeatureStatistics.of(activations, convention)
    else:
        pool = _statistics(members, "", count, convention, path)
    return Reference(
        pool=pool,
        spatial=_statistics(members, "_s", count, convention, path) if "mu_s" in members else None,
        activations=activations,
        images=None if images is None else _check_images(images),
        labels=labels,
        data_hash=str(members.get("data_hash", "")),
    )


def save_samples(
    path: str | os.PathLike, images: ArrayLike, labels: ArrayLike | None = None
) -> None:
    """Writes samples as the ADM evaluation suite reads them: ``arr_0``, and labels in ``arr_1``.

    Args:
        path: Where to; exactly this name.
        images: uint8 ``(n, height, width, channels)``; its networks ask for three channels.
        labels: Integers ``(n,)``.

    Raises:
        ValueError: Images are not uint8 NHWC, or labels do not fit.
    """
    images = _check_images(images)
    members = {"arr_0": np.ascontiguousarray(images)}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels: shape {labels.shape} for {len(images)} images")
        members["arr_1"] = labels
    save_npz(path, members)


def _check_images(images: ArrayLike) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images: expected uint8 NHWC, got {images.dtype} {images.shape}")
    return images


def _statistics(
    members: dict[str, np.ndarray],
    suffix: str,
    count: int | None,
    convention: str,
    path: str | os.PathLike,
) -> FeatureStatistics:
    if f"sigma{suffix}" not in members:
        raise ValueError(f"{path}: holds mu{suffix} but no sigma{suffix}")
    mean = members[f"mu{suffix}"].astype(np.float64)
    covariance = members[f"sigma{suffix}"].astype(np.float64)
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise ValueError(
            f"{path}: mu{suffix} of shape {mean.shape} and sigma{suffix} of shape "
            f"{covariance.shape} do not fit together"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu{suffix} or sigma{suffix} holds NaN or infinity")
    return FeatureStatistics(mean, covariance, count, convention)


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an npz file of plain arrays ({error})") from None


def save_npz(path: str | os.PathLike, members: Mapping[str, ArrayLike]) -> None:
    """Writes arrays exactly at ``path``, whole or not at all, making its directory if need be."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through a temporary name, so that an interrupted run leaves no half a file; through a file
    # object, so that NumPy does not append a suffix.
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **members)
    os.replace(temporary, path)
