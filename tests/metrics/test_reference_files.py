"""Statistics and sample files: the published forms, round trips, refusals."""

import numpy as np
import pytest

from diffjax.metrics import (
    FeatureStatistics,
    Reference,
    frechet_distance,
    frechet_distance_from_statistics,
    load_reference,
    save_npz,
    save_reference,
    save_samples,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def features(generator):
    return generator.standard_normal((40, 6))


@pytest.fixture
def images(generator):
    return generator.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)


def assert_equal(left, right):
    np.testing.assert_array_equal(left.mean, right.mean)
    np.testing.assert_array_equal(left.covariance, right.covariance)
    assert (left.count, left.convention) == (right.count, right.convention)


def test_round_trip(tmp_path, features, images):
    reference = Reference(
        pool=FeatureStatistics.of(features, "clean"),
        spatial=FeatureStatistics.of(features[:, :3], "clean"),
        images=images,
        labels=np.arange(10),
        data_hash="ab12",
    )
    path = tmp_path / "reference.npz"
    save_reference(path, reference)
    loaded = load_reference(path)
    assert_equal(loaded.pool, reference.pool)
    assert_equal(loaded.spatial, reference.spatial)
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, np.arange(10))
    assert loaded.data_hash == "ab12"
    assert loaded.activations is None
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]
    assert set(np.load(path).files) == {
        *("mu", "sigma", "mu_s", "sigma_s", "n", "convention", "arr_0", "arr_1", "data_hash")
    }
    assert frechet_distance_from_statistics(loaded.pool, reference.pool) < 1e-8


def test_an_interrupted_run_goes_on_from_the_file(tmp_path, features):
    save_reference(tmp_path / "a", Reference(FeatureStatistics.of(features[:15], "c")))
    resumed = load_reference(tmp_path / "a").pool.add(features[15:])
    np.testing.assert_allclose(resumed.covariance, np.cov(features, rowvar=False), rtol=1e-12)
    assert resumed.count == 40


def test_adm_reference(tmp_path, features, images):
    path = tmp_path / "VIRTUAL_imagenet64_labeled.npz"
    statistics = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    np.savez(path, arr_0=images, **statistics, mu_s=np.zeros(3), sigma_s=np.eye(3))
    loaded = load_reference(path)
    assert loaded.pool.convention == loaded.spatial.convention == "tensorflow"
    assert loaded.pool.count is None
    assert loaded.spatial.dimension == 3
    np.testing.assert_array_equal(loaded.pool.covariance, np.cov(features.T))
    np.testing.assert_array_equal(loaded.images, images)
    with pytest.raises(ValueError, match="made with convention 'tensorflow', not 'clean'"):
        load_reference(path, "clean")


def test_pytorch_fid_statistics_need_their_convention(tmp_path, features):
    path = tmp_path / "cifar10.npz"
    np.savez(path, mu=features.mean(0).astype(np.float32), sigma=np.cov(features.T))
    with pytest.raises(ValueError, match="does not record its convention"):
        load_reference(path)
    loaded = load_reference(path, "pytorch")
    assert (loaded.pool.convention, loaded.pool.count) == ("pytorch", None)
    assert loaded.pool.mean.dtype == np.float64
    with pytest.raises(ValueError, match="different conventions"):
        frechet_distance_from_statistics(loaded.pool, FeatureStatistics.of(features, "tensorflow"))


def test_raw_activations(tmp_path, features, generator):
    path = tmp_path / "cifar10_stats.npz"
    np.savez(path, pool_3=features.astype(np.float32))
    loaded = load_reference(path, "tfgan")
    assert loaded.pool.count == 40
    np.testing.assert_array_equal(loaded.activations, features.astype(np.float32))
    other = generator.standard_normal((30, 6))
    np.testing.assert_allclose(
        frechet_distance_from_statistics(loaded.pool, FeatureStatistics.of(other, "tfgan")),
        frechet_distance(loaded.activations, other),
        rtol=1e-8,
    )


def test_samples_serve_as_a_reference(tmp_path, images):
    path = tmp_path / "samples_10x4x4x3.npz"
    save_samples(path, images, np.arange(10))
    loaded = load_reference(path)
    assert loaded.pool is None
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, np.arange(10))
    with np.load(path) as file:
        assert file["arr_0"].flags.c_contiguous


def test_what_stands_in_a_file_is_lost_to_no_failure(tmp_path, monkeypatch):
    path = tmp_path / "new" / "directory" / "arrays.npz"
    save_npz(path, {"x": np.arange(3)})

    def fail(file, **members):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_npz(path, {"x": np.arange(4)})
    with np.load(path) as file:
        np.testing.assert_array_equal(file["x"], np.arange(3))


def test_bad_samples_are_refused(tmp_path, images):
    path = tmp_path / "samples.npz"
    with pytest.raises(ValueError, match="expected uint8 NHWC, got float32"):
        save_samples(path, images.astype(np.float32))
    with pytest.raises(ValueError, match="expected uint8 NHWC"):
        save_samples(path, images[0])
    with pytest.raises(ValueError, match=r"labels: shape \(9,\) for 10 images"):
        save_samples(path, images, np.arange(9))
    assert not path.exists()


def test_bad_references_are_not_written(tmp_path, features):
    pool = FeatureStatistics.of(features, "clean")
    with pytest.raises(ValueError, match="needs statistics of pooled features"):
        save_reference(tmp_path / "a.npz", Reference())
    with pytest.raises(ValueError, match="must come from one pass"):
        save_reference(
            tmp_path / "a.npz", Reference(pool, FeatureStatistics.of(features[:9], "clean"))
        )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"weights": np.ones(3)}, "no known members; found weights, expected"),
        ({"mu": np.ones(3)}, "mu but no sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, "do not fit together"),
        ({"mu": np.ones(3), "sigma": np.full((3, 3), np.nan)}, "NaN or infinity"),
        ({"mu": np.ones(2), "sigma": np.eye(2), "mu_s": np.ones(2)}, "mu_s but no sigma_s"),
        ({"pool_3": np.full((3, 3), np.nan)}, "3 of 3 samples hold NaN"),
        ({"arr_0": np.ones((2, 2))}, "expected uint8 NHWC"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "not an npz file of plain arrays"),
    ],
)
def test_damaged_files_are_refused(tmp_path, members, message):
    np.savez(tmp_path / "bad.npz", **members)
    with pytest.raises(ValueError, match=message):
        load_reference(tmp_path / "bad.npz", "tensorflow")


@pytest.mark.parametrize("content", [b"no npz", b""])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match="not an npz file"):
        load_reference(tmp_path / "bad.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "bad.npy", np.ones(3))
    with pytest.raises(ValueError, match="not an npz file"):
        load_reference(tmp_path / "bad.npy")
