"""From a source to batches: order, sharding by host, flips and prefetching.

Batch s of a run is a pure function of (source, seed, s). Nothing has to be saved to continue a
run but its step: `batches(..., start_step=s)` goes on bit for bit where step s - 1 ended, on any
number of hosts.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import TypedDict

import grain
import numpy as np

from diffjax.data.base import Source

__all__ = ["Batch", "batches", "epoch"]

_ORDER, _FLIP = 0, 1  # what a stream of random numbers is for


class Batch(TypedDict):
    """Examples: images uint8 (n, height, width, channels) and labels int32 (n,)."""

    image: np.ndarray
    label: np.ndarray


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shuffle: bool = True,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """An endless stream of training batches.

    Examples come in epochs, each once an epoch and every epoch in a new order. A batch may span
    two epochs, so no example is dropped when the batch size does not divide the epoch.

    Args:
        source: the data.
        batch_size: size of the global batch, over all hosts.
        seed: of the order and of the flips.
        start_step: index of the first batch; the step of the run that is continued.
        shuffle: False keeps the order of the source.
        flip: mirror each image left to right with probability 1/2, drawn anew every epoch.
        process_index: this host.
        process_count: number of hosts. Host p gets rows p n .. (p + 1) n - 1 of each global
            batch, n = batch_size / process_count.
        prefetch: batches prepared ahead, each by a thread of its own; 0 prepares each one when
            it is asked for.

    Returns:
        An iterator over this host's batches.

    Raises:
        ValueError: the source is empty or a number is out of range.
    """
    size = len(source)
    if not size:
        raise ValueError(f"the data {source.name!r} have no examples")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a positive multiple of the number of hosts, "
            f"got {batch_size} for {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed and start_step must not be negative, got {seed} and {start_step}")
    local_size = batch_size // process_count
    rows = slice(process_index * local_size, (process_index + 1) * local_size)

    @functools.lru_cache(maxsize=2)
    def order(number: int) -> np.ndarray:
        """The order of one epoch."""
        if not shuffle:
            return np.arange(size)
        return np.random.default_rng([seed, _ORDER, number]).permutation(size)

    def batch_at(step: int) -> Batch:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[rows]
        epochs, places = np.divmod(positions, size)
        indices = np.concatenate([order(e)[places[epochs == e]] for e in np.unique(epochs)])
        batch = _read(source, indices)
        if flip:
            # Drawn for the global batch, so that the number of hosts does not change it.
            draws = np.random.default_rng([seed, _FLIP, step]).random(batch_size)
            mirrored = draws[rows] < 0.5
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return batch

    return _prefetched(grain.MapDataset.range(start_step, sys.maxsize).map(batch_at), prefetch)


def epoch(source: Source, batch_size: int, *, start: int = 0, prefetch: int = 4) -> Iterator[Batch]:
    """One pass over the data in order, for evaluation and statistics; the last batch may be short.

    Args:
        source: the data.
        batch_size: examples in a batch.
        start: index of the first example, to go on with a pass that was interrupted.
        prefetch: batches prepared ahead, as in `batches`.

    Returns:
        An iterator over ceil((len(source) - start) / batch_size) batches.

    Raises:
        ValueError: the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if start >= len(source):
        return iter(())
    starts = grain.MapDataset.range(start, len(source), batch_size)
    examples = range(len(source))
    return _prefetched(
        starts.map(lambda start: _read(source, examples[start : start + batch_size])), prefetch
    )


def _read(source: Source, indices: Iterable[int]) -> Batch:
    """Reads and stacks examples."""
    examples = [source[int(i)] for i in indices]
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
    }


def _prefetched(dataset: grain.MapDataset, prefetch: int) -> Iterator[Batch]:
    """Iterates over a data set with `prefetch` elements in preparation."""
    if prefetch < 0:
        raise ValueError(f"prefetch must not be negative, got {prefetch}")
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
