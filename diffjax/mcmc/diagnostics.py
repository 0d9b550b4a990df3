"""How well chains mix: effective sample sizes and split R-hat by BlackJAX, and a picture.

All that is told is about scalar statistics of the chains, such as their noise level or a component
of the data, ``(steps, chains)`` as :func:`~diffjax.mcmc.scan` stacks them.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffjax.typing import Array

__all__ = ["Mixing", "mixing", "picture"]


class Mixing(NamedTuple):
    """What a statistic of the chains says of their mixing.

    Attributes:
        ess: Effective sample size, of ``count`` values.
        rhat: Split R-hat, the potential scale reduction of half chains; below 1.01 is good.
        count: Values in all, steps times chains.
    """

    ess: float
    rhat: float
    count: int


def mixing(statistics: Mapping[str, Array]) -> dict[str, Mixing]:
    """Effective sample size and split R-hat of some statistics, by BlackJAX.

    Args:
        statistics: Arrays ``(steps, chains)`` by name, at least 4 steps and 2 chains.

    Raises:
        ValueError: BlackJAX is not installed, or an array is too small.
    """
    try:
        from blackjax.diagnostics import effective_sample_size, potential_scale_reduction
    except ImportError as error:
        raise ValueError("diagnostics need BlackJAX: pip install diffjax[mcmc]") from error
    found = {}
    for name, values in statistics.items():
        values = np.asarray(values).T
        if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 4:
            raise ValueError(
                f"mixing: {name!r} has shape {values.shape[::-1]}; give at least 4 steps and "
                "2 chains"
            )
        half = values.shape[1] // 2
        halves = np.concatenate([values[:, :half], values[:, -half:]])
        ess, rhat = effective_sample_size(values), potential_scale_reduction(halves)
        found[name] = Mixing(float(ess), float(rhat), values.size)
    return found


def picture(
    states: Array, sigma: Array, samples: Array, path: str | os.PathLike, *, limit: float = 1.0
) -> None:
    """Draws a chain in time: its states, what is denoised of them, and its noise level.

    Args:
        states: Images ``(steps, H, W, C)``.
        sigma: Their levels ``(steps,)``.
        samples: Denoised images ``(steps, H, W, C)``.
        path: A PNG file.
        limit: Data are in ``[-limit, limit]``; states are shown relative to their own noise.
    """
    from matplotlib.figure import Figure

    states, sigma, samples = (np.asarray(value) for value in (states, sigma, samples))
    steps = len(states)
    figure = Figure(figsize=(max(4.0, 0.5 * steps), 2.4), layout="constrained")
    grid = figure.add_gridspec(3, steps)
    for index in range(steps):
        width = limit + 2 * sigma[index]
        for row, (image, extent) in enumerate(((states, width), (samples, limit))):
            axes = figure.add_subplot(grid[row, index])
            shown = np.clip(image[index] / extent / 2 + 0.5, 0, 1)
            axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
    axes = figure.add_subplot(grid[2, :])
    axes.plot(np.arange(steps), sigma, "o-", markersize=3)
    axes.set(xlim=(-0.5, steps - 0.5), ylabel="noise", xlabel="sample of the chain")
    figure.savefig(path, dpi=100)
