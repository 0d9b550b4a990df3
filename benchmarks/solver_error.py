"""Error of each solver against the converged ODE at equal numbers of network calls.

python benchmarks/solver_error.py --workdir runs/digits --plot docs/solver_error.png

On a mixture of 8 Gaussians in 16 dimensions on DDPM's chain, exact prediction; and on a network
trained on the digits, without guidance and with it: the run that ``make demo`` leaves, trained
first if it is missing. Runs end with the step to the data, on the log_snr grid.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import parser, train_run

from diffjax import analytic, checkpoint, experiment, solvers
from diffjax.fitting import sampling_predict
from diffjax.schedules import Discrete, prior
from diffjax.solvers import Recipe, adams, learned, timesteps, unipc
from diffjax.train import state_shapes
from diffjax.workdir import load_config

MAKERS = {
    "ddim": solvers.ddim,
    "dpm_solver_2m": lambda schedule: solvers.multistep(schedule, "eps"),
    "dpm_solver_pp_2m": solvers.multistep,
    "dpm_solver_pp_3m": lambda schedule: solvers.multistep(schedule, order=3),
    "unipc": unipc.unipc,
    "deis": adams.deis,
    "ipndm": adams.ipndm,
}
ROWS = 256
GUIDANCE = 2.0


def mixture():
    """Exact prediction, schedule and shape."""
    means = np.random.default_rng(7).normal(size=(8, 16)).astype(np.float32)
    schedule = Discrete.linear(1000)
    return analytic.Mixture(means, 0.1).predict(schedule), schedule, (16,)


def digits(workdir: pathlib.Path, guidance: float):
    """The prediction of a trained network for the labels 0, 1, 2, ..."""
    config = load_config(workdir)
    config.sample.guidance = guidance
    made = experiment.build(config)
    state = checkpoint.restore_for_sampling(workdir, state_shapes(made))
    return sampling_predict(made, state, ROWS), made.schedule, made.shape


def errors(predict, schedule, shape, calls, learned_calls, flops) -> dict[str, list[float]]:
    """Rms error by solver, one for each number of calls."""
    x = prior(schedule, schedule.t_max, (ROWS, *shape), jax.random.key(0))
    fine = Recipe(
        solvers.multistep(schedule, order=3), timesteps.log_snr(schedule, 500), denoise=True
    )
    exact = jax.jit(lambda x: solvers.run(fine, predict, x).x)(x)
    draw = jax.jit(lambda fitted: learned.sample(fitted, predict, schedule, x).x)

    def rms(fitted):
        return float(jnp.sqrt(jnp.mean((draw(fitted) - exact) ** 2)))

    def fitted(count):
        noise, key = jax.random.split(jax.random.key(1))
        starts = prior(schedule, schedule.t_max, x.shape, noise)
        return learned.fit(predict, schedule, steps=count, x_T=starts, key=key, flops=flops)

    table = {name: [] for name in MAKERS}
    for count in calls:
        ts = timesteps.log_snr(schedule, count - 1)
        for name, make in MAKERS.items():
            weights = jax.jit(lambda ts, make=make: learned.table(make(schedule), schedule, ts))
            table[name].append(rms(learned.Fitted(jnp.append(ts, 0.0), ts, weights(ts))))
    if learned_calls:
        table["learned"] = [
            rms(fitted(count)) if count in learned_calls else np.nan for count in calls
        ]
    return table


def show(title: str, table: dict[str, list[float]], calls) -> None:
    """Prints a Markdown table."""
    print(f"\n{title}\n\n| solver | " + " | ".join(f"{count} calls" for count in calls) + " |")
    print("| --- |" + " --- |" * len(calls))
    for name, row in table.items():
        cells = (f"{error:.4f}" if error == error else "" for error in row)
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)


def plot(tables: dict[str, dict[str, list[float]]], calls, path: pathlib.Path) -> None:
    """One panel a problem, one line a solver."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(tables), figsize=(4.2 * len(tables), 3.6), layout="constrained"
    )
    for axis, (title, table) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        for name, row in table.items():
            measured = [
                (count, error) for count, error in zip(calls, row, strict=True) if error == error
            ]
            style = dict(linewidth=2.5, color="black") if name == "learned" else {}
            axis.plot(*zip(*measured, strict=True), marker="o", markersize=3, label=name, **style)
        axis.set(title=title, xlabel="network calls", xscale="log", yscale="log")
        axis.set_xticks(calls, map(str, calls))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("rms error to the converged ODE")
    handles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    np.atleast_1d(axes)[-1].legend(*handles, fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints a table for each problem, and draws the plot if asked."""
    flags = parser(__doc__)
    flags.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    flags.add_argument("--calls", type=int, nargs="+", default=[5, 6, 8, 10, 15, 20])
    flags.add_argument("--learned", type=int, nargs="*", help="calls to fit for; default: all")
    flags.add_argument(
        "--learned_digits", type=int, nargs="*", default=[], help="the same on the digits, slow"
    )
    flags.add_argument("--flops", type=float, default=2e12, help="arithmetic of each fit")
    flags.add_argument("--plot", type=pathlib.Path, help="where to draw")
    args = flags.parse_args()
    if args.quick:
        args.calls, args.learned, args.flops = [5], [5], 1.0
    if not (args.workdir / "config.json").exists():
        train_run(args.workdir, "configs/digits/default.py" + ":quick" * args.quick)
    problems = {
        "mixture, D = 16": mixture,
        "digits": lambda: digits(args.workdir, 1.0),
        f"digits, guidance {GUIDANCE:g}": lambda: digits(args.workdir, GUIDANCE),
    }
    fits = args.calls if args.learned is None else args.learned
    tables = {}
    for title, make in problems.items():
        chosen = fits if make is mixture else args.learned_digits
        tables[title] = errors(*make(), args.calls, chosen, args.flops)
        show(title, tables[title], args.calls)
    if args.plot:
        plot(tables, args.calls, args.plot)


if __name__ == "__main__":
    main()
