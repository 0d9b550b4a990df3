"""The solver contract, and ``solve``: one ``lax.scan`` over a grid of times.

A solver is two pure functions. ``init(x)`` makes its memory (``()`` for one-step methods) and
``step`` takes the state from one time to the next. The grid is an array, so a solver knows nothing
of spacings; noise comes from the key it is given; guidance and thresholding live in ``predict``.
To write one, write ``step`` and wrap it: ``Solver(lambda x: (), step, evaluations=1)``. What
depends on the grid alone, such as the weights of a multistep method, a solver may ``plan``: it is
computed once, for all steps together, before the loop.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict, evaluations
from diffjax.random import fold_in
from diffjax.typing import Array, Key

__all__ = ["Memory", "Solution", "Solver", "Span", "denoise", "one_step", "solve"]

Memory = Any


class Span(NamedTuple):
    """What a solver is told about one step.

    Attributes:
        t: Time of the state, ``()`` or ``(batch,)``.
        t_next: Time to step to, of the same shape, closer to the data.
        index: Number of steps already taken, ``()`` int32.
        remaining: Number of steps left, this one included, ``()`` int32; 1 on the last step.
        plan: What the solver's own ``plan`` made for this step.
    """

    t: Array
    t_next: Array
    index: Array
    remaining: Array
    plan: Any = ()


class Solver(NamedTuple):
    """One step of the reverse process, as a pair of pure functions.

    Attributes:
        init: ``x -> memory``; the memory is a pytree of fixed shapes, ``()`` if there is none.
        step: ``(predict, x, memory, span, key) -> (x, memory)``. Deterministic solvers ignore the
            key, which may be None.
        evaluations: Calls of ``predict`` in a step.
        plan: ``ts -> plan``, what follows from the grid (``(steps + 1,)`` or per sample
            ``(steps + 1, batch)``): arrays ``(steps, ...)``, a step's own being ``span.plan``.
    """

    init: Callable[[Array], Memory]
    step: Callable[[Predict, Array, Memory, Span, Key | None], tuple[Array, Memory]]
    evaluations: int
    plan: Callable[[Array], Any] = lambda ts: ()


class Solution(NamedTuple):
    """What ``solve`` returns.

    Attributes:
        x: Final state, of the start's shape.
        nfe: Network evaluations per sample, guidance's second call included.
        trajectory: States at every time of the grid, shape ``(steps + 1, batch, ...)``, or None.
        memory: The solver's memory at the end; a solver that goes on from there has it as ``init``.
    """

    x: Array
    nfe: int
    trajectory: Array | None = None
    memory: Memory = ()


def one_step(
    step: Callable[[Predict, Array, Span, Key | None], Array], evaluations: int = 1
) -> Solver:
    """A solver without memory, from ``step(predict, x, span, key) -> x``."""
    return Solver(
        lambda x: (),
        lambda predict, x, memory, span, key: (step(predict, x, span, key), memory),
        evaluations,
    )


def solve(
    solver: Solver,
    predict: Predict,
    x: Array,
    ts: Array,
    key: Key | None = None,
    *,
    trajectory: bool = False,
    callback: Callable[[Span, Array], None] | None = None,
) -> Solution:
    """Runs ``solver`` along ``ts``: one ``lax.scan``, so one trace of the network per compilation.

    Pure in all its arguments: works under ``jit``, ``vmap`` and ``grad``. The times visited are the
    times given. Different orders or solvers in one run are several calls, one after another.

    Args:
        solver: What takes a step.
        predict: The network seen through its schedule.
        x: Start, shape ``(batch, ...)``, distributed as the marginal at ``ts[0]``.
        ts: Strictly decreasing times, ``(steps + 1,)`` or per sample ``(steps + 1, batch)``.
        key: For solvers that add noise: one key, or one per sample ``(batch,)``, in which case
            sample ``i`` depends on ``x[i]`` and ``key[i]`` alone.
        trajectory: Whether to keep every state.
        callback: Called on the host with ``(span, x)`` after every step, for previews.

    Returns:
        The :class:`Solution`; ``nfe = steps * solver.evaluations * evaluations(predict)``.

    Raises:
        ValueError: The times are not decreasing, their shape fits neither form, ``x`` is not
            finite, or a key does not fit. Values are checked outside ``jit`` only.
    """
    x, ts = jnp.asarray(x), jnp.asarray(ts)
    _check(x, ts, key)
    steps = ts.shape[0] - 1

    def body(carry, scanned):
        x, memory = carry
        t, t_next, index, plan = scanned
        span = Span(t, t_next, index, steps - index, plan)
        step_key = None if key is None else fold_in(key, index)
        # A float64 time must not promote a float32 state in the middle of a scan.
        x_next, memory = solver.step(predict, x, memory, span, step_key)
        x_next = x_next.astype(x.dtype)
        if callback is not None:
            jax.debug.callback(callback, span, x_next)
        return (x_next, memory), (x_next if trajectory else None)

    scanned = (ts[:-1], ts[1:], jnp.arange(steps, dtype=jnp.int32), solver.plan(ts))
    (x_end, memory), states = jax.lax.scan(body, (x, solver.init(x)), scanned)
    nfe = steps * solver.evaluations * evaluations(predict)
    states = jnp.concatenate([x[None], states]) if trajectory else None
    return Solution(x_end, nfe, states, memory)


def denoise(predict: Predict, x: Array, t: Array) -> Solution:
    """The step to the data, ``x0(x, t)``: the usual end of a run. Costs one call of ``predict``."""
    return Solution(predict(x, t).x0, evaluations(predict))


def _check(x: Array, ts: Array, key: Key | None) -> None:
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"solve: x must be a batch of floats, got shape {x.shape} of {x.dtype}")
    if ts.ndim not in (1, 2) or ts.shape[0] < 2 or ts.shape[1:] not in ((), x.shape[:1]):
        raise ValueError(
            f"solve: ts has shape {ts.shape}; give at least two times, shape (steps + 1,) or "
            f"(steps + 1, {x.shape[0]}) for a batch of {x.shape[0]}"
        )
    if key is not None and key.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"solve: key has shape {key.shape}; give one key, or one per sample {x.shape[:1]}"
        )
    if not isinstance(ts, jax.core.Tracer):
        gaps = np.diff(np.asarray(ts), axis=0)
        if not (gaps < 0).all():
            step = int(np.argwhere(~(gaps < 0))[0][0])
            raise ValueError(
                f"solve: times must decrease strictly, but ts[{step}] = {np.asarray(ts)[step]} "
                f"is followed by ts[{step + 1}] = {np.asarray(ts)[step + 1]}"
            )
    if not isinstance(x, jax.core.Tracer):
        # x may be a constant of a function being traced, where plain jnp would trace the check.
        with jax.ensure_compile_time_eval():
            finite = bool(jnp.isfinite(x).all())
        if not finite:
            raise ValueError("solve: x holds values that are not finite (NaN or infinity)")
