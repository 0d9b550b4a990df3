"""What an experiment costs: parameters, arithmetic, memory, network evaluations. Trains nothing."""

import json
import math

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params

from diffjax import parallel, upsampling
from diffjax.experiment import Experiment, abstract_batch, check_devices
from diffjax.systems import Request
from diffjax.train import state_shapes

__all__ = ["flops", "network_evaluations", "report"]


def report(experiment: Experiment) -> str:
    """The config and what it costs, in words. All from shapes; an update is compiled, none is run.

    Raises:
        ValueError: The batch does not fit the devices.
    """
    config, classes = experiment.config, experiment.num_classes
    shape = "x".join(map(str, experiment.shape))
    steps = experiment.recipe.ts.shape[0] - 1
    kind = "images" if experiment.scale is None else "latents"
    lines = {kind: f"{shape}, {f'{classes} classes' if classes else 'unconditional'}"}
    if experiment.system.sample is not None:
        calls = network_evaluations(experiment)
        lines["a sample"] = (
            f"{calls} network evaluations, in {steps} steps of "
            f"{config.sample.solver}{' and one to the data' if experiment.recipe.denoise else ''}"
        )
    if jax.tree.leaves(state_shapes(experiment).params):
        lines |= _training(experiment)
    resolved = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    width = max(map(len, lines)) + 2
    return "\n".join([resolved, "", *(f"{name:{width}}{text}" for name, text in lines.items())])


def network_evaluations(experiment: Experiment, guidance: float | None = None) -> int:
    """Network evaluations of a sample, from shapes alone; guided as its config says if None."""
    if guidance is None:
        guidance = experiment.config.sample.guidance
    one = {"index": jax.ShapeDtypeStruct((1,), "int32")}
    if experiment.num_classes:
        one["labels"] = jax.ShapeDtypeStruct((1,), "int32")
    if experiment.config.data.low_res:
        small = upsampling.small_shape(experiment.config)
        one["low_res"] = jax.ShapeDtypeStruct((1, *small), "float32")
    nfe = []

    def sample(state, key, one):
        nfe.append(experiment.system.sample(state, key, Request(guidance=guidance, **one)).nfe)

    jax.eval_shape(sample, state_shapes(experiment), jax.random.key(0), one)
    return nfe[0]


def _training(experiment: Experiment) -> dict[str, str]:
    """What the state and an update of it cost."""
    config, mode = experiment.config, experiment.config.parallel.mode
    mesh = parallel.make_mesh(mode, config.parallel.fsdp)
    check_devices(config, mesh.size)
    state = state_shapes(experiment, mesh)
    parts = {"parameters": state.params, "averages": state.ema, "optimiser": state.opt_state}
    sizes = {name: _size(part) for name, part in parts.items()}
    listing = ", ".join(f"{name} {_scaled(size, 1024, 'iB')}" for name, size in sizes.items())
    layout = f"data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}"
    return {
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}",
        "state": f"{_scaled(sum(sizes.values()), 1024, 'iB')}: {listing}",
        "an update": f"{_scaled(_update_flops(experiment, mesh.size), 1000, 'FLOP')} in matrix "
        f"products and convolutions, for {config.train.batch_size} images",
        "memory": f"{_scaled(_update_memory(experiment, state, mesh), 1024, 'iB')} a device in an "
        "update, as compiled for this one",
        "devices": f"{mesh.size} {mesh.devices.flat[0].device_kind} ({mode}, {layout})",
    }


def _update_flops(experiment: Experiment, devices: int) -> int:
    batch = abstract_batch(experiment, experiment.config.train.batch_size // devices)
    update = jax.make_jaxpr(experiment.system.update, axis_env=[(parallel.AXIS, devices)])
    return devices * flops(update(state_shapes(experiment), batch, jax.random.key(0)).jaxpr)


def _update_memory(experiment: Experiment, state, mesh: jax.sharding.Mesh) -> int:
    """Bytes on the fullest device: what goes in, what comes out elsewhere, what is in between."""
    mode = experiment.config.parallel.mode
    batch = abstract_batch(experiment, experiment.config.train.batch_size)

    def placed(leaf):
        if mode == "pmap":
            shape = (mesh.size, leaf.shape[0] // mesh.size, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)
        sharding = parallel.batch_sharding(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    update = parallel.compile_update(
        experiment.system, state, jax.tree.map(placed, batch), mesh, mode
    )
    needed = update.memory_analysis()
    return (
        needed.argument_size_in_bytes
        + needed.output_size_in_bytes
        - needed.alias_size_in_bytes
        + needed.temp_size_in_bytes
    )


def flops(jaxpr: Jaxpr) -> int:
    """Multiplications and additions in matrix products and convolutions.

    XLA's own cost analysis counts the body of a loop once, hence one layer of a scanned
    transformer and one of all microbatches; here a scan counts as often as it runs. The body of a
    ``while`` counts once, for its number of runs is not known; of a ``cond``, the dearest branch.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * kernel.size // features * equation.outvars[0].aval.size
        else:
            inside = [flops(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(parameters)]
            repeated = parameters["length"] if name == "scan" else 1
            total += repeated * (max(inside, default=0) if name == "cond" else sum(inside))
    return total


def _size(tree) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _scaled(value: int, base: int, unit: str) -> str:
    """``1.2 MiB``: three digits and the fitting prefix."""
    power = 0
    while value >= 999.5 and power < 5:
        value, power = value / base, power + 1
    return f"{value:.3g} {['', *'KMGTP'][power]}{unit}".replace(" iB", " B")
