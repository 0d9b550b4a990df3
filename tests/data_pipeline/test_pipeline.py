"""Order, sharding, resumption and flips of the input pipeline."""

import itertools

import numpy as np
import pytest

from diffjax import data


def numbered(n=23, height=2, width=3):
    """A source whose image and label both say which example it is, and which way it looks."""
    images = np.zeros((n, height, width, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(n)[:, None]
    return data.ArraySource(images, np.arange(n), name="numbered")


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def labels(source, n, **options):
    """Labels of the first n batches, one after another."""
    return np.concatenate([b["label"] for b in take(data.batches(source, **options), n)])


def assert_same(batches, others):
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_batch():
    batch = next(data.batches(numbered(), batch_size=4, seed=0))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (4, 2, 3, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize("size", [1, 5, 23, 64])
def test_each_example_once_an_epoch(size):
    # Whatever the batch size: the stream does not notice where batches end.
    source = numbered(23)
    stream = labels(source, -(-5 * 23 // size), batch_size=size, seed=7)[: 5 * 23].reshape(5, 23)
    for order in stream:
        assert sorted(order) == list(range(23))
    assert len({tuple(order) for order in stream}) == 5
    np.testing.assert_array_equal(stream.ravel(), labels(source, 115, batch_size=1, seed=7))


def test_orders_are_uniform():
    # 4000 epochs of 5 examples: each (place, example) pair occurs 800 +- 25 times.
    stream = labels(numbered(5), 20, batch_size=1000, seed=0).reshape(4000, 5)
    counts = np.array([np.bincount(column, minlength=5) for column in stream.T])
    assert np.abs(counts - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)
    # and neighbouring epochs are independent: an example keeps its place one time in five.
    kept = (stream[1:] == stream[:-1]).mean()
    assert abs(kept - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)


def test_seeds_give_different_orders():
    streams = {tuple(labels(numbered(), 4, batch_size=23, seed=seed)) for seed in range(5)}
    epochs = {stream[i : i + 23] for stream in streams for i in range(0, 92, 23)}
    assert len(epochs) == 20


def test_without_shuffling_the_order_is_the_sources():
    stream = labels(numbered(), 5, batch_size=10, seed=0, shuffle=False)
    np.testing.assert_array_equal(stream, np.arange(50) % 23)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_deterministic(prefetch):
    options = {"batch_size": 10, "seed": 3, "flip": True}
    again = take(data.batches(numbered(), prefetch=prefetch, **options), 12)
    assert_same(take(data.batches(numbered(), **options), 12), again)


@pytest.mark.parametrize("processes", [2, 3])
def test_hosts_share_one_global_batch(processes):
    options = {"batch_size": 12, "seed": 3, "flip": True}
    whole = take(data.batches(numbered(), **options), 8)
    parts = [
        take(data.batches(numbered(), process_index=p, process_count=processes, **options), 8)
        for p in range(processes)
    ]
    assert all(len(batch["label"]) == 12 // processes for part in parts for batch in part)
    joined = [
        {key: np.concatenate([batch[key] for batch in batches]) for key in ("image", "label")}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("step", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("process", [0, 1])
def test_resumes_bit_for_bit(step, process):
    options = {
        "batch_size": 10,
        "seed": 3,
        "flip": True,
        "process_index": process,
        "process_count": 2,
    }
    whole = take(data.batches(numbered(), **options), 16)
    rest = take(data.batches(numbered(), start_step=step, **options), 16 - step)
    assert_same(whole[step:], rest)


def test_far_steps_cost_nothing():
    options = {"batch_size": 10, "seed": 3, "flip": True}
    a, b = take(data.batches(numbered(), start_step=10**12, **options), 2)
    assert_same([b], take(data.batches(numbered(), start_step=10**12 + 1, **options), 1))
    assert len(set(a["label"])) > 1


def test_flips_are_fair_and_new_every_epoch():
    source = numbered(10)
    batches = take(data.batches(source, batch_size=50, seed=1, flip=True), 80)  # 400 epochs
    images = np.concatenate([batch["image"] for batch in batches])[..., 0]
    numbers = np.concatenate([batch["label"] for batch in batches])
    images, numbers = images[numbers > 0], numbers[numbers > 0]  # example 0 is its own mirror
    straight, mirrored = images[:, 0, 0] == numbers, images[:, 0, -1] == numbers
    assert (straight ^ mirrored).all()
    np.testing.assert_array_equal(images[:, 0], images[:, 1])
    assert (images[:, :, 1] == 0).all()
    # Fair over all, and for each example: 400 draws each.
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(mirrored))
    for number in range(1, 10):
        assert abs(mirrored[numbers == number].mean() - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_flips_leave_order_and_source_alone():
    source = numbered()
    before = source.images.copy()
    plain = labels(source, 5, batch_size=10, seed=1)
    flipped = labels(source, 5, batch_size=10, seed=1, flip=True)
    np.testing.assert_array_equal(plain, flipped)
    np.testing.assert_array_equal(source.images, before)


def test_epoch_reads_everything_once_in_order():
    for size, sizes in ((10, [10, 10, 3]), (23, [23]), (40, [23]), (1, [1] * 23)):
        batches = list(data.epoch(numbered(), size))
        assert [len(batch["label"]) for batch in batches] == sizes
        np.testing.assert_array_equal(
            np.concatenate([batch["label"] for batch in batches]), np.arange(23)
        )
    assert_same(list(data.epoch(numbered(), 10, prefetch=0)), list(data.epoch(numbered(), 10)))
    assert batches[0]["image"].dtype == np.uint8 and batches[0]["label"].dtype == np.int32


def test_a_users_source_needs_nothing_else():
    class Mine:
        name, shape, num_classes, levels = "mine", (1, 1, 1), 0, 256

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": np.full((1, 1, 1), index, np.uint8), "label": 0}

    batch = next(data.batches(Mine(), batch_size=6, seed=0))
    assert sorted(batch["image"].ravel()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "positive multiple of the number of hosts, got 0 for 1"),
        ({"batch_size": 5, "process_count": 2}, "multiple of the number of hosts, got 5 for 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index must be in 0..1, got 2"),
        ({"start_step": -1}, "must not be negative, got 0 and -1"),
        ({"seed": -1}, "must not be negative, got -1 and 0"),
        ({"prefetch": -1}, "prefetch must not be negative, got -1"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(numbered(), **{"batch_size": 4, "seed": 0} | options)


def test_nothing_to_read():
    empty = data.ArraySource(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="'arrays' have no examples"):
        data.batches(empty, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.epoch(numbered(), 0)
