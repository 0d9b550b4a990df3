"""The training state: one pytree that holds everything a run needs to go on."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from diffjax.typing import Array, Key

__all__ = ["TrainState", "create", "ema_decay", "gather", "select_parameters", "update"]

Parameters = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and the key it draws from.

    Attributes:
        step: Updates made, ``()`` int32.
        params: The network's parameters, float32.
        ema: Exponential moving averages of the parameters, by rate: ``{'0.999': params, ...}``.
        opt_state: The optimiser's state.
        key: Root key of the run; update ``s`` draws from ``fold_in(key, s)``, so the state alone
            decides all later draws.
    """

    step: Array
    params: Parameters
    ema: dict[str, Parameters]
    opt_state: optax.OptState
    key: Key


def create(
    key: Key,
    params: Parameters,
    optimizer: optax.GradientTransformation,
    ema_rates: Sequence[float] = (),
) -> TrainState:
    """The state before the first update; the averages start as copies of the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={str(rate): jax.tree.map(jnp.copy, params) for rate in ema_rates},
        opt_state=optimizer.init(params),
        key=key,
    )


def ema_decay(rate: float, step: Array, warmup: bool) -> Array:
    """Decay of an average at ``step``: ``min(rate, (1 + step) / (10 + step))`` while warming up.

    The warm-up forgets the initial parameters in short runs; it ends after ``10 / (1 - rate)``
    steps and costs nothing in long ones.
    """
    return jnp.minimum(rate, (1 + step) / (10 + step)) if warmup else jnp.asarray(rate)


def update(
    state: TrainState,
    grads: Parameters,
    optimizer: optax.GradientTransformation,
    ema_warmup: bool = True,
) -> TrainState:
    """One optimiser step and one step of every average, which thus can never be forgotten."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = {
        rate: optax.incremental_update(
            params, average, 1 - ema_decay(float(rate), state.step, ema_warmup)
        )
        for rate, average in state.ema.items()
    }
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


def gather(params: Parameters) -> Parameters:
    """Parameters whole on every device, where training shards them; elsewhere as they are.

    To be used inside what is differentiated. It makes XLA gather weights and scatter gradients;
    left to itself, it may gather the activations of the whole batch instead.
    """
    if "fsdp" not in jax.sharding.get_abstract_mesh().axis_names:
        return params
    whole = jax.tree.map(lambda _: PartitionSpec(), params)
    return jax.lax.with_sharding_constraint(params, whole)


def select_parameters(state: TrainState, ema: str | None) -> Parameters:
    """The average of the given rate (``'0.999'``), or the raw parameters for None or ``''``.

    Raises:
        ValueError: The state holds no such average.
    """
    if not ema:
        return state.params
    if ema not in state.ema:
        raise ValueError(
            f"no parameter average of rate {ema!r}: this run keeps {sorted(state.ema) or 'none'}; "
            "use one of those, or '' for the raw parameters"
        )
    return state.ema[ema]
