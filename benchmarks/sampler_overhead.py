"""What a solver costs beside the network it calls: the goal is 2 % of time, 30 % + 2 s to compile.

``solve`` with N calls of the network, over N times one jitted call of it. The N calls follow one
another, each on the result of the one before, with nothing else in between and without waiting for
any but the last. A loop on the device of the bare network stands beside it: what the loop itself
gains or loses is the compiler's, the rest is the solver's. Compilation, of the whole run and of one
call, is from Python function to executable, in seconds of all cores together.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import ROOT, facts, header, interleave, parser, ratio, row, timing_flags

from diffjax import components, configuration, experiment, schedules, solvers
from diffjax.prediction import network_predict
from diffjax.random import per_sample

# Those of one call a step: what they add is theirs.
SOLVERS = (
    "ancestral",
    "ddim",
    "deis",
    "dpm_solver_2m",
    "dpm_solver_3m",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "euler",
    "euler_ancestral",
    "ipndm",
    "lms",
    "sde_dpm_solver_pp_2m",
    "unip",
    "unipc",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how long to look at it.

    Attributes:
        config: Config file, below ``configs/``, with its variant.
        batch: Samples drawn together.
        calls: Network calls of a run.
        repeats: Rounds of measurements.
    """

    config: str
    batch: int
    calls: int = 20
    repeats: int = 21


CASES = {
    "mlp": Case("digits/default.py:mlp", batch=256),
    "unet": Case("digits/default.py", batch=128),
    "dit": Case("digits/default.py:dit", batch=128),
    "ddpm cifar10": Case("cifar10/ddpm.py", batch=2, calls=10, repeats=5),
}


def programs(
    case: Case, names: tuple[str, ...]
) -> tuple[int, dict[str, Callable[[], object]], dict[str, float]]:
    """Parameters, what to time (calls one by one, in a loop, by each solver), compile times."""
    built = experiment.build(configuration.load(ROOT / "configs" / case.config), open_data=False)
    config, schedule = built.config, built.schedule
    network = components.network(config, built.num_classes)
    parametrization = components.parametrization(config)
    labels = jnp.arange(case.batch) % built.num_classes if built.num_classes else None
    times = jnp.zeros(case.batch)
    shape = (case.batch, *built.shape)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(shape), times, labels)["params"]
    # Weights that start at zero would let all activations vanish.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [w + 0.01 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)]
    )
    x = schedules.prior(schedule, schedule.t_max, shape, jax.random.key(2))
    keys = per_sample(jax.random.key(3), jnp.arange(case.batch))

    def apply(params, x, time):
        return network.apply({"params": params}, x, time, labels)

    seconds = {}

    def compiled(name, function, *arguments):
        start = time.process_time()
        program = jax.jit(function).lower(*arguments).compile()
        seconds[name] = time.process_time() - start
        return program

    call = compiled("calls", apply, params, x, times)

    def one_by_one():
        out = x
        for _ in range(case.calls):
            out = call(params, out, times)
        return out.block_until_ready()

    def loop(times, params, x):
        # Other times each turn, or the compiler takes what depends on them out of the loop.
        return jax.lax.scan(lambda x, time: (apply(params, x, time), None), x, times)[0]

    def solve(solver, ts, params, x):
        predict = network_predict(functools.partial(apply, params), schedule, parametrization)
        return solvers.solve(solver, predict, x, ts, keys).x

    turns = jnp.zeros((case.calls, case.batch))
    runs = {"loop": functools.partial(compiled("loop", loop, turns, params, x), turns)}
    for name in names:
        recipe = solvers.recipe(name, schedule, case.calls, grid=config.sample.grid, denoise=False)
        runs[name] = compiled(name, functools.partial(solve, recipe.solver, recipe.ts), params, x)

    def runner(function):
        return lambda: function(params, x).block_until_ready()

    runs = {name: runner(function) for name, function in runs.items()}
    return sum(w.size for w in leaves), {"calls": one_by_one, **runs}, seconds


def main() -> None:
    flags = parser(__doc__)
    timing_flags(flags, CASES)
    flags.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    options = flags.parse_args()
    if options.quick:
        options.cases = [name for name in options.cases if name != "ddpm cifar10"]
    clock = f"{options.clock} clock, median (quartiles)"
    print(f"Time of a run over that of as many network calls: {clock}\n")
    print(header(["network", "run", "time over that of its calls", "compiling, s", "allowed, s"]))
    for name in options.cases:
        case = CASES[name]
        if options.quick:
            case = dataclasses.replace(case, batch=16, calls=5, repeats=3)
        size, runs, seconds = programs(case, tuple(options.solvers))
        times = interleave(runs, options.repeats or case.repeats, clock=options.clock)
        one = times.pop("calls")
        each = f"one of {case.calls} calls, {1e3 * np.median(one) / case.calls:.2f} ms"
        title = f"{name}: {size:,} parameters, batch {case.batch}"
        print(row([title, each, "1", f"{seconds['calls']:.2f}", ""]), flush=True)
        for run, values in times.items():
            allowed = f"{1.3 * seconds['calls'] + 2:.2f}"
            print(row(["", run, ratio(values, one), f"{seconds[run]:.2f}", allowed]), flush=True)
    print(f"\n{facts('jaxlib', 'flax')}")


if __name__ == "__main__":
    main()
