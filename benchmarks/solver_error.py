"""Error of each solver against the converged ODE at equal numbers of network calls.

python benchmarks/solver_error.py
"""

import jax
import jax.numpy as jnp

from diffjax import analytic, solvers
from diffjax.schedules import VPLinear, prior
from diffjax.solvers import solve, timesteps

BUDGETS = (6, 8, 12, 16, 24, 48)
MAKERS = {
    "euler": solvers.euler,
    "ddim": solvers.ddim,
    "heun": solvers.heun,
    "dpm_solver_2s": lambda schedule: solvers.singlestep(schedule, "eps"),
    "dpm_solver_2m": lambda schedule: solvers.multistep(schedule, "eps"),
    "dpm_solver_pp_2s": solvers.singlestep,
    "dpm_solver_pp_2m": solvers.multistep,
}


def main() -> None:
    """Prints a Markdown table."""
    schedule = VPLinear()
    angles = jnp.arange(8) * jnp.pi / 4
    means = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    predict = analytic.Mixture(means, 0.15).predict(schedule)
    x = prior(schedule, schedule.t_max, (4096, 2), jax.random.key(0))
    exact = solve(solvers.singlestep(schedule), predict, x, timesteps.log_snr(schedule, 4000)).x
    print("| solver | " + " | ".join(f"{budget} calls" for budget in BUDGETS) + " |")
    print("| --- |" + " --- |" * len(BUDGETS))
    for name, make in MAKERS.items():
        solver, row = make(schedule), []
        for budget in BUDGETS:
            ts = timesteps.log_snr(schedule, budget // solver.evaluations)
            end = solve(solver, predict, x, ts).x
            row.append(f"{float(jnp.sqrt(jnp.mean((end - exact) ** 2))):.4f}")
        print(f"| `{name}` | " + " | ".join(row) + " |")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
