"""UniPC: a multistep predictor whose next network call also corrects the step before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict
from diffjax.schedules import Schedule
from diffjax.solvers import exponential, timesteps
from diffjax.solvers.base import Solution, Solver, solve
from diffjax.solvers.linear import Weights, combine, orders, polynomial_weights
from diffjax.typing import Array

__all__ = ["ALGORITHMS", "VARIANTS", "sample", "unipc"]

VARIANTS = ("bh1", "bh2", "vary_coeff")
ALGORITHMS = {"data_prediction": "x0", "noise_prediction": "eps"}


class Plan(NamedTuple):
    """Weights of a step.

    Attributes:
        predict: Takes the state to the next time.
        correct: Repeats the step *before* with the prediction at its end, the last of its values.
    """

    predict: Weights
    correct: Weights


class Memory(NamedTuple):
    """What the corrector starts from.

    Attributes:
        x: Corrected state at the time before.
        values: Predictions at the times before, latest first.
    """

    x: Array
    values: tuple[Array, ...]


def unipc(
    schedule: Schedule,
    expansion: str = "x0",
    *,
    order: int = 3,
    variant: str = "bh2",
    lower_order_final: bool = True,
    corrector: bool = True,
) -> Solver:
    r"""UniPC of order 1 to 4; UniP without its corrector.

    .. math:: x^p_s = C x_t + A \sum_j w_j m_{-j}, \qquad
              x_s = C x_t + A \Big[\sum_j w'_j m_{-j} + w'_s\, m(x^p_s, s)\Big]

    with weights of the polynomials through the predictions; the call at ``x^p_s`` is the next
    step's too, so the corrector costs nothing. The state between steps is the predicted one; the
    last step is not corrected. UniP has order ``order``, UniPC one more. One network call a step.
    Zhao et al. 2023 (arXiv 2302.04867).

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` (data prediction) or ``'eps'`` (noise prediction).
        order: 1 to 4.
        variant: ``'bh1'`` or ``'bh2'``: the weight ``B/2`` of the slope where there is one
            difference only, ``B = h`` or ``e^h - 1``; ``'vary_coeff'``: exact weights there too.
            From two differences on all variants are the same. (The authors' code of
            ``'vary_coeff'`` leaves out terms of its corrector from order 2 on, which makes that
            first order; here it is as in the paper.)
        lower_order_final: Let the order fall to 1 over the last steps.
        corrector: Whether steps are corrected.

    Raises:
        ValueError: An unknown expansion, order or variant.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"unipc: order must be 1, 2, 3 or 4, got {order}")
    if variant not in VARIANTS:
        raise ValueError(f"unipc: unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    expanded = exponential.expansion(expansion)

    def moments(nodes: int, h: Array) -> list[Array]:
        exact = exponential.moments(nodes, h, expanded.sign)
        if nodes == 2 and variant == "bh1":
            exact[1] = 0.5 / exponential.phis(1, expanded.sign * h)[0]
        if nodes == 2 and variant == "bh2":
            exact[1] = jnp.full_like(h, 0.5)
        return exact

    def plan(ts: Array) -> Plan:
        count = ts.shape[0] - 1
        used = orders(count, order, lower_order_final)
        steps = exponential.plan_steps(schedule, ts)
        ahead = polynomial_weights(steps, expanded, used, order, moments)
        if not corrector:
            return Plan(ahead, ahead)
        # Step i corrects step i - 1; the first has nothing to correct, and the last is left as it
        # is predicted, so its weights are not needed.
        back = polynomial_weights(steps, expanded, used, order, moments, ahead=True)
        before = np.maximum(np.arange(count) - 1, 0)
        return Plan(ahead, jax.tree.map(lambda leaf: leaf[before], back))

    def init(x: Array) -> Memory:
        kept = order if corrector else order - 1
        return Memory(x, (jnp.zeros_like(x),) * kept)

    def step(predict, x, memory, span, key):
        del key
        value = expanded.quantity(predict(x, span.t)).astype(x.dtype)
        if corrector:
            corrected = combine(span.plan.correct, memory.x, (*memory.values, value))
            x = jnp.where(span.index > 0, corrected, x).astype(x.dtype)
        values = (value, *memory.values)
        ahead = combine(span.plan.predict, x, values[:order])
        return ahead, Memory(x, values[:-1])

    return Solver(init, step, evaluations=1, plan=plan)


def sample(
    predict: Predict,
    schedule: Schedule,
    x: Array,
    *,
    steps: int,
    order: int,
    variant: str,
    algorithm: str = "data_prediction",
    skip: str,
    lower_order_final: bool = True,
    t_start: Array | None = None,
    t_end: Array | None = None,
) -> Solution:
    """UniPC under its published names. Costs ``steps`` calls of ``predict``.

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        x: Start, ``(batch, ...)``, at ``t_start``.
        steps: Network calls, at least ``order``.
        order: 1 to 4.
        variant: ``'bh1'``, ``'bh2'`` or ``'vary_coeff'``.
        algorithm: ``'data_prediction'`` or ``'noise_prediction'``.
        skip: ``'time_uniform'``, ``'logSNR'`` or ``'time_quadratic'``.
        lower_order_final: Let the order fall to 1 over the last steps.
        t_start: Time of ``x``; the schedule's ``t_max`` if not given.
        t_end: Where to stop; the schedule's ``t_min`` if not given.

    Raises:
        ValueError: An unknown name, or fewer steps than the order.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"unipc: unknown algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}"
        )
    if steps < order:
        raise ValueError(f"unipc: steps={steps} is fewer than order={order}; take more steps")
    solver = unipc(
        schedule,
        ALGORITHMS[algorithm],
        order=order,
        variant=variant,
        lower_order_final=lower_order_final,
    )
    ts = timesteps.published(skip)(schedule, steps, t_start=t_start, t_end=t_end)
    return solve(solver, predict, x, ts)
