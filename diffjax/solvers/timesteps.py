"""Grids of times: arrays of ``steps + 1`` decreasing times from ``t_start`` to ``t_end``.

Any decreasing array will do; these are the field's usual ones. The ends default to the schedule's
``t_max`` and ``t_min``. The step to the data itself is :func:`diffjax.solvers.denoise`, or a
further time 0 where the schedule has no noise there.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.schedules import Discrete, Schedule, half_log_snr
from diffjax.typing import Array

__all__ = ["GRIDS", "ends", "karras", "log_snr", "published", "quadratic", "respaced", "uniform"]


def uniform(
    schedule: Schedule, steps: int, *, t_start: Array | None = None, t_end: Array | None = None
) -> Array:
    """Evenly spaced in ``t``, shape ``(steps + 1,)``."""
    _check_steps(steps)
    t_start, t_end = ends(schedule, t_start, t_end)
    return _exact_ends(jnp.linspace(t_start, t_end, steps + 1), t_start, t_end)


def quadratic(
    schedule: Schedule, steps: int, *, t_start: Array | None = None, t_end: Array | None = None
) -> Array:
    """Evenly spaced in ``sqrt(t)`` (Song et al. 2021, DDIM), shape ``(steps + 1,)``."""
    _check_steps(steps)
    t_start, t_end = ends(schedule, t_start, t_end)
    roots = jnp.linspace(jnp.sqrt(t_start), jnp.sqrt(t_end), steps + 1)
    return _exact_ends(roots**2, t_start, t_end)


def log_snr(
    schedule: Schedule, steps: int, *, t_start: Array | None = None, t_end: Array | None = None
) -> Array:
    """Evenly spaced in half log SNR (Lu et al. 2022), shape ``(steps + 1,)``."""
    _check_steps(steps)
    t_start, t_end = ends(schedule, t_start, t_end)
    lams = jnp.linspace(half_log_snr(schedule, t_start), half_log_snr(schedule, t_end), steps + 1)
    return _exact_ends(schedule.time(lams), t_start, t_end)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    t_start: Array | None = None,
    t_end: Array | None = None,
) -> Array:
    """Evenly spaced in ``(sigma / alpha)^(1/rho)``, Karras et al. 2022, eq. (5)."""
    _check_steps(steps)
    t_start, t_end = ends(schedule, t_start, t_end)
    roots = (jnp.exp(-half_log_snr(schedule, t) / rho) for t in (t_start, t_end))
    noise = jnp.linspace(*roots, steps + 1) ** rho
    return _exact_ends(schedule.time(-jnp.log(noise)), t_start, t_end)


def respaced(schedule: Discrete, sections: str | Sequence[int]) -> Array:
    """Some of a chain's own times, latest first, as Improved DDPM chooses them.

    Args:
        schedule: The chain.
        sections: ``'ddimN'`` for ``N`` indices a whole stride apart, from index 0; or the number
            of indices taken from each of equally long sections of the chain, evenly spread with
            both ends, e.g. ``[250]`` or ``'10,10,20'``.

    Returns:
        Times of the retained indices, latest first, shape ``(retained,)``. They end at the first
        retained index; append 0 (or :func:`~diffjax.solvers.denoise`) for the step to the data.

    Raises:
        ValueError: The schedule is no chain, or it cannot be divided so.
    """
    if not isinstance(schedule, Discrete):
        raise ValueError(f"respaced: {type(schedule).__name__} is not a chain; use Discrete")
    indices = respaced_indices(schedule.steps, sections)
    return jnp.asarray((indices[::-1] + 1) / schedule.steps, jnp.result_type(float))


def respaced_indices(total: int, sections: str | Sequence[int]) -> np.ndarray:
    """Indices, ascending, that :func:`respaced` retains of a chain of ``total`` steps."""
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim"))
        for stride in range(1, total):
            if len(range(0, total, stride)) == wanted:
                return np.arange(0, total, stride)
        raise ValueError(f"respaced: no whole stride takes {wanted} of {total} steps")
    if isinstance(sections, str):
        sections = [int(part) for part in sections.split(",")]
    lengths = [total // len(sections) + (i < total % len(sections)) for i in range(len(sections))]
    indices, start = [], 0
    for length, count in zip(lengths, sections, strict=True):
        if not 1 <= count <= length:
            raise ValueError(f"respaced: cannot take {count} of a section of {length} steps")
        # Rounded from exact multiples, half to even, as the published tables are.
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        indices.extend(start + round(i * stride) for i in range(count))
        start += length
    return np.asarray(indices)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {steps}")


def ends(schedule: Schedule, t_start: Array | None, t_end: Array | None) -> tuple[Array, Array]:
    """Where a run starts and ends: the schedule's own ends where they are not given.

    Raises:
        ValueError: They do not decrease, or lie outside the schedule. Values are checked outside
            ``jit`` only.
    """
    dtype = jnp.result_type(float)
    start = jnp.asarray(schedule.t_max if t_start is None else t_start, dtype)
    end = jnp.asarray(schedule.t_min if t_end is None else t_end, dtype)
    check_inside(schedule, start, end)
    traced = any(isinstance(value, jax.core.Tracer) for value in (start, end))
    if not traced and not (np.asarray(start) > np.asarray(end)).all():
        raise ValueError(
            f"times must decrease: t_start={np.asarray(start)!s} is not larger than "
            f"t_end={np.asarray(end)!s}"
        )
    return start, end


def check_inside(schedule: Schedule, start: Array, end: Array) -> None:
    """Raises ValueError where a run starts beyond the schedule or ends below the data.

    Values are checked outside ``jit`` only.
    """
    if any(isinstance(value, jax.core.Tracer) for value in (start, end, schedule.t_max)):
        return
    start, end = np.asarray(start), np.asarray(end)
    # Rounding may leave a time of another grid a little beyond the end of this one.
    if (start > schedule.t_max * (1 + 1e-5)).any():
        raise ValueError(f"t_start={start!s} is beyond the schedule's t_max={schedule.t_max}")
    if (end < 0).any():
        raise ValueError(f"t_end={end!s} is below 0, which is the data")


def _exact_ends(ts: Array, t_start: Array, t_end: Array) -> Array:
    """The same grid without the rounding of a round trip at its ends."""
    return ts.at[0].set(t_start).at[-1].set(t_end)


def published(skip: str) -> Callable[..., Array]:
    """The grid of a published name: ``'time_uniform'``, ``'logSNR'`` or ``'time_quadratic'``.

    Raises:
        ValueError: It is none of these.
    """
    if skip not in PUBLISHED:
        raise ValueError(f"unknown skip {skip!r}: choose one of {', '.join(PUBLISHED)}")
    return PUBLISHED[skip]


GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}
PUBLISHED = {"time_uniform": uniform, "logSNR": log_snr, "time_quadratic": quadratic}
