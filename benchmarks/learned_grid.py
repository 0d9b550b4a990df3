"""Learned samplers beside the best that diffusers can do, at equal numbers of network calls.

python benchmarks/learned_grid.py --seeds 7 1 2 --calls 5 6 8 10 15 20

Mixtures of 8 Gaussians in 16 dimensions (std 0.1) on DDPM's chain, exact prediction, 256 starts;
rms error against a fine solve, denoised. Learned samplers are fitted on other noise. diffusers, if
it is installed, runs every scheduler of its ODE family in hundreds of settings, and the best on
these very starts is taken; so are the best of our untrained solvers.
"""

import functools
import itertools
import math
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import parser

from diffjax import analytic, solvers
from diffjax.schedules import Discrete, prior
from diffjax.solvers import denoise, learned, optimal_grids, solve, timesteps
from diffjax.solvers.adams import deis, ipndm, lms

SCHEDULE = Discrete.linear(1000)
METHODS = ("diffusers", "untrained", "ays", "dmn", "learned")


def problem(seed: int):
    """Means, starts and the exact answer."""
    rng = np.random.default_rng(seed)
    means, x = rng.normal(size=(8, 16)), rng.normal(size=(256, 16))
    with jax.enable_x64(True):
        predict = analytic.Mixture(jnp.asarray(means), 0.1).predict(SCHEDULE)
        ts = timesteps.log_snr(SCHEDULE, 2000)
        fine = jax.jit(
            lambda x: (
                denoise(
                    predict, solve(solvers.multistep(SCHEDULE, order=3), predict, x, ts).x, ts[-1]
                ).x
            )
        )
        exact = np.asarray(fine(jnp.asarray(x)))
    return means.astype(np.float32), x.astype(np.float32), exact


def rms(x, exact) -> float:
    """Root-mean-square distance."""
    return float(np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2)))


def one_call_solvers() -> dict[str, solvers.Solver]:
    """Ours, untrained, of one call a step."""
    made = {"ddim": solvers.ddim(SCHEDULE), "euler": solvers.euler(SCHEDULE)}
    for kind, order, low in itertools.product(("x0", "eps"), (2, 3), (True, False)):
        options = dict(order=order, lower_order_final=low)
        name = f"{kind} {order}{'' if low else ' full'}"
        made[f"multistep {name}"] = solvers.multistep(SCHEDULE, kind, **options)
        for variant in ("bh1", "bh2"):
            made[f"unipc {variant} {name}"] = solvers.unipc.unipc(
                SCHEDULE, kind, variant=variant, **options
            )
    for order in (2, 3, 4):
        made |= {f"ipndm {order}": ipndm(SCHEDULE, order=order)}
        made |= {f"lms {order}": lms(SCHEDULE, order=order)}
        made |= {f"deis {order}": deis(SCHEDULE, order=order)}
    return made


@functools.cache
def _tables():
    """Compiled tables of every solver: one program draws with all of them."""
    return {
        name: jax.jit(lambda ts, solver=solver: learned.table(solver, SCHEDULE, ts))
        for name, solver in one_call_solvers().items()
    }


def untrained(predict, x, calls: int, grids) -> dict[str, np.ndarray]:
    """Every one of our solvers on each of the grids."""
    draw = jax.jit(lambda fitted: learned.sample(fitted, predict, SCHEDULE, x).x)
    return {
        f"{name}, {grid}": draw(learned.Fitted(jnp.append(ts, 0.0), ts, table(ts)))
        for grid, ts in grids.items()
        for name, table in _tables().items()
    }


def optimal_grid(method: str, means, predict, steps: int):
    """AYS from samples of the mixture, or DMN."""
    if method == "dmn":
        return optimal_grids.dmn(SCHEDULE, steps)
    data, key = jax.random.split(jax.random.key(2))
    x0 = analytic.Mixture(jnp.asarray(means), 0.1).sample(data, 512)
    return optimal_grids.align_your_steps(predict, SCHEDULE, steps, x0=x0, key=key)


def fitted(predict, calls: int, seed: int) -> learned.Fitted:
    """A learned sampler, fitted on noise of its own."""
    noise, key = jax.random.split(jax.random.key(1000 + seed))
    starts = prior(SCHEDULE, 1.0, (256, 16), noise)
    return learned.fit(predict, SCHEDULE, steps=calls, x_T=starts, key=key)


def on_many(predict, found: learned.Fitted) -> float:
    """Error on 16,384 further starts: of 256, few or none fall on the edge between components."""
    fine = solvers.multistep(SCHEDULE, order=3, halved_curvature=False)
    recipe = solvers.Recipe(fine, timesteps.log_snr(SCHEDULE, 120), denoise=True)
    starts = prior(SCHEDULE, 1.0, (16_384, 16), jax.random.key(99)).reshape(64, 256, 16)

    @jax.jit
    def squares(found):
        def batch(x):
            exact = solvers.run(recipe, predict, x).x
            return jnp.square(learned.sample(found, predict, SCHEDULE, x).x - exact).mean()

        return jax.lax.map(batch, starts).mean()

    return math.sqrt(squares(found))


def diffusers_settings():
    """``(name, make scheduler, steps for calls)`` of everything that solves the ODE."""
    import diffusers

    spacings = [dict(timestep_spacing=spacing) for spacing in ("linspace", "leading", "trailing")]
    sigmas = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
    lus = [dict(use_lu_lambdas=True)]
    ends = [dict(final_sigmas_type=end) for end in ("zero", "sigma_min")]
    finals = [dict(lower_order_final=low) for low in (True, False)]
    kinds = [dict(solver_type=kind) for kind in ("midpoint", "heun")]
    orders = [dict(solver_order=order) for order in (1, 2, 3)]
    algorithms = [dict(algorithm_type=kind) for kind in ("dpmsolver++", "dpmsolver")]
    grids = [*spacings, *sigmas]
    unipc_kinds = [dict(solver_type=kind) for kind in ("bh1", "bh2")]
    space = {
        "DPMSolverMultistep": (orders, algorithms, kinds, [*grids, *lus], ends, finals),
        "DPMSolverSinglestep": (orders, algorithms, kinds, [*sigmas, {}], ends, finals),
        "UniPCMultistep": (
            orders,
            unipc_kinds,
            [dict(predict_x0=True), dict(predict_x0=False)],
            grids,
            ends,
            finals,
        ),
        "DEISMultistep": (orders, grids, finals),
        "DDIM": (spacings, [dict(set_alpha_to_one=one) for one in (True, False)]),
        "PNDM": (spacings, [dict(set_alpha_to_one=one) for one in (True, False)]),
        "EulerDiscrete": (grids, ends),
        "HeunDiscrete": (grids,),
        "LMSDiscrete": (grids,),
        "KDPM2Discrete": (grids,),
    }
    steps = {
        "PNDM": lambda calls: calls - 1,
        "HeunDiscrete": lambda calls: (calls + 1) // 2,
        "KDPM2Discrete": lambda calls: (calls + 1) // 2,
    }
    fixed = {"DDIM": dict(clip_sample=False), "PNDM": dict(skip_prk_steps=True)}
    for name, axes in space.items():
        kind = getattr(diffusers, f"{name}Scheduler")
        for choice in itertools.product(*axes):
            options = {key: value for part in choice for key, value in part.items()}
            label = f"{name} " + " ".join(
                str(value) if isinstance(value, str | int) and value not in (True, False) else key
                for key, value in options.items()
                if value is not False
            )
            make = functools.partial(
                kind, beta_start=1e-4, beta_end=0.02, **options, **fixed.get(name, {})
            )
            yield label, make, steps.get(name, lambda calls: calls)


def by_diffusers(means, x, calls: int) -> dict[str, np.ndarray]:
    """Every setting that runs, and makes no more calls than it may."""
    import torch

    torch.set_grad_enabled(False)
    means, x = torch.from_numpy(means), torch.from_numpy(x)
    log_alphas = torch.from_numpy(SCHEDULE.log_alphas)
    made = 0

    def eps(x, label):
        nonlocal made
        made += 1
        place = min(max(float(label) + 1, 0.0), 1000.0)
        low = min(int(place), 999)
        log_alpha = log_alphas[low] + (place - low) * (log_alphas[low + 1] - log_alphas[low])
        alpha, variance = math.exp(log_alpha), -math.expm1(2 * log_alpha)
        total = (0.1 * alpha) ** 2 + variance
        difference = x[:, None] - alpha * means
        share = torch.softmax(-0.5 * (difference**2).sum(-1) / total, dim=-1)
        return math.sqrt(variance) / total * torch.einsum("bk,bkd->bd", share, difference)

    ends = {}
    for label, make, steps in diffusers_settings():
        made = 0
        try:
            scheduler = make()
            scheduler.set_timesteps(steps(calls))
            state = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                output = eps(scheduler.scale_model_input(state, t), t)
                state = scheduler.step(output, t, state).prev_sample
        except (ValueError, IndexError, NotImplementedError, AssertionError, RuntimeError):
            continue  # settings that the scheduler refuses
        if made <= calls and torch.isfinite(state).all():
            ends[label] = state.numpy()
    return ends


def best(ends, exact) -> tuple[float, str]:
    """Least error, and whose it is."""
    found = min((rms(end, exact), name) for name, end in ends.items() if np.isfinite(end).all())
    return found[0], f"{found[1]} (of {len(ends)})"


def main() -> None:
    """Prints a Markdown table."""
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=[7, 1, 2])
    flags.add_argument("--calls", type=int, nargs="+", default=[5, 6, 8, 10, 15, 20])
    flags.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = flags.parse_args()
    if args.quick:
        args.seeds, args.calls, args.methods = [7], [5], ["diffusers", "untrained"]
    methods = list(args.methods)
    if "diffusers" in methods:
        try:
            warnings.filterwarnings("ignore")
            import diffusers

            diffusers.logging.set_verbosity_error()
        except ImportError:
            print("diffusers is not installed (benchmarks/requirements.txt): left out")
            methods.remove("diffusers")
    print("| seed | calls | method | rms error | to diffusers | seconds | which |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seed in args.seeds:
        means, x, exact = problem(seed)
        predict = analytic.Mixture(jnp.asarray(means), 0.1).predict(SCHEDULE)
        for calls in args.calls:
            theirs = math.nan
            for method in methods:
                begun, which = time.perf_counter(), ""
                if method == "diffusers":
                    error, which = best(by_diffusers(means, x, calls), exact)
                    theirs = error
                elif method == "untrained":
                    grids = {
                        name: grid(SCHEDULE, calls - 1) for name, grid in timesteps.GRIDS.items()
                    }
                    error, which = best(untrained(predict, x, calls, grids), exact)
                elif method in ("ays", "dmn"):
                    grids = {method: optimal_grid(method, means, predict, calls - 1)}
                    error, which = best(untrained(predict, x, calls, grids), exact)
                else:
                    found = fitted(predict, calls, seed)
                    error = rms(learned.sample(found, predict, SCHEDULE, x).x, exact)
                    which = f"{on_many(predict, found):.4f} on 16,384 other starts"
                seconds = time.perf_counter() - begun
                print(
                    f"| {seed} | {calls} | {method} | {error:.4f} | {error / theirs:.2f} | "
                    f"{seconds:.0f} | {which} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
