"""Denoising MCMC beside its integrators alone, at equal network calls, samples and seeds.

python benchmarks/dmcmc.py --workdir runs/mlp --predictor runs/noise       (--quick to try it)

Two parts, each with tables in Markdown and plots. The exact mixture in 64 dimensions needs no
training: sliced Wasserstein distance, and the rms distance to the nearest mean. Digits are drawn
from a run of configs/digits/default.py:mlp, with a predictor of configs/digits/noise_level.py; a
run that is missing is trained first. There, the Frechet distance in the features of the classifier
that judges samples, with precision and recall, against the half of the data that nothing has seen.
With ``--choose`` settings of the chain are compared instead, with a seed of their own.

What a chain costs before its first sample is shared by its samples and is not in the budget, as in
the paper; it is told before the tables.
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from dmcmc_arms import Excursions, Langevin
from side_by_side import train_run

from diffjax import (
    analytic,
    components,
    data,
    mcmc,
    metrics,
    reference,
    serving,
    train,
)
from diffjax import experiment as experiments
from diffjax.checkpoint import restore_for_sampling
from diffjax.data.images import to_uint8
from diffjax.prediction import network_predict
from diffjax.random import fold_in, per_sample
from diffjax.schedules import EDM
from diffjax.solvers import Solution
from diffjax.state import select_parameters
from diffjax.workdir import load_config

NAMES = ("kar1", "pf", "rk45", "kar2", "rd", "em", "dpm_solver_pp", "unipc")
ARMS = ("alone", "DMCMC", "DLG")
# What --choose tries.
CANDIDATES = [
    {},
    *({"level": level} for level in (0.15, 0.4)),
    *({"climb": climb} for climb in (0.375, 2.0)),
    {"rise": 0.08},
    {"part": 0.75},
    {"level": 0.15, "climb": 0.375},
    {"select": "least_noisy"},
]
NOTHING = mcmc.Integrator(lambda predict, x, sigma, key=None: Solution(x, 0), 0)


def split(name: str, budget: int, chain: int, low: float, data_range: float):
    """The integrator that leaves at least ``chain`` of a budget's calls to the chain, if it can.

    Returns:
        The integrator, and the calls left to the chain; None and 0 where it can make no such call.
    """
    for den in [*range(budget - 1 - chain, 0, -1), *range(budget - chain, budget - 1)]:
        try:
            made = mcmc.integrator(name, den, low=low, data_range=data_range)
        except ValueError:
            continue
        return made, budget - 1 - den
    return None, 0


def windows(sampler, predict, keys, shape, rounds: int):
    """States that the chains give to be denoised, ``(rounds * chains, ...)``, and their levels."""

    def one(chains, _):
        chains, drawn = sampler.draw(predict, keys, chains)
        return chains, drawn.picked

    chains = sampler.init(predict, keys, shape)
    picked = jax.lax.scan(one, chains, None, length=rounds)[1]
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), picked)


class Setting:
    """What is drawn from: ``(parameters, rows) -> predict``, its levels, how to score.

    ``floor`` are the scores of real data.
    """

    def __init__(
        self, parameters, predict, shape, low, high, data_range, chains, number, score, real
    ):
        # Parameters are arguments of all programs: XLA would fold constants at length.
        self.parameters, self.predict = parameters, predict
        self.shape, self.low, self.high = shape, low, high
        self.data_range, self.chains, self.number, self.score = data_range, chains, number, score
        self.floor = score(real)
        print("floor, real data:", self.floor)

    @functools.cache  # noqa: B019
    def finish(self, name: str, calls: int):
        """States to data, compiled once for all arms."""
        integrator = mcmc.integrator(name, calls, low=self.low, data_range=self.data_range)

        def run(parameters, state, key):
            predict = self.predict(parameters, self.number)
            return mcmc.finish(integrator, predict, state, self.low, key).x

        return functools.partial(jax.jit(run), self.parameters)

    def noise(self, seed: int) -> mcmc.ChainState:
        """Pure noise."""
        keys = per_sample(jax.random.fold_in(jax.random.key(seed), 1), jnp.arange(self.number))
        x = jax.vmap(lambda key: jax.random.normal(key, self.shape))(keys)
        return mcmc.ChainState(self.high * x, jnp.full(self.number, self.high))

    def keys(self, seed: int):
        """A key for each sample's integrator."""
        return per_sample(jax.random.fold_in(jax.random.key(seed), 2), jnp.arange(self.number))

    def alone(self, name: str, budget: int, seed: int):
        """The integrator from pure noise; it may leave a call or two of the budget unused."""
        made, _ = split(name, budget, 0, self.low, self.data_range)
        if made is None:
            return None
        return self.score(self.finish(name, made.calls)(self.noise(seed), self.keys(seed)))

    @functools.cache  # noqa: B019
    def walked(self, arm, n_skip: int, calls: int):
        """Seed to the states that an arm's chains give, compiled."""
        keys = per_sample(jax.random.key(0), jnp.arange(self.chains))
        kernel, start = arm.make(self, calls)
        sampler = mcmc.denoising_mcmc(
            kernel, NOTHING, start, n_skip=n_skip, low=self.low, select=arm.select
        )
        rounds = self.number // self.chains

        def run(parameters, seed):
            predict = self.predict(parameters, self.chains)
            own = fold_in(keys, seed)
            return windows(sampler, predict, own, self.shape, rounds)

        return functools.partial(jax.jit(run), self.parameters)

    def by_chains(self, arm, name: str, budget: int, seed: int):
        """The integrator from the states of an arm's chains, at the same budget."""
        made, left = split(name, budget, arm.share(budget), self.low, self.data_range)
        if made is None or left == 0:
            return None
        n_skip, calls = arm.steps(left)
        picked = self.walked(arm.before(name), n_skip, calls)(seed)
        return self.score(self.finish(name, made.calls)(picked, self.keys(seed)))


def mixture(number: int, chains: int) -> tuple[Setting, tuple]:
    """Ten Gaussians with means uniform in the unit cube of 64 dimensions; everything exact."""
    low, high, d = 0.01, 50.0, 64
    means = np.random.default_rng(0).uniform(size=(10, d)).astype(np.float32)
    known = analytic.Mixture(means, 0.05)
    predict = known.predict(EDM(low, high))
    real = np.asarray(known.sample(jax.random.key(10_000), 4000))

    def score(x) -> dict[str, float]:
        x = np.asarray(x)
        apart = np.sqrt(((x[:, None] - means) ** 2).mean(-1)).min(1).mean()
        sliced = metrics.sliced_wasserstein(real, x, jax.random.key(0), directions=200) ** 0.5
        return {"sliced W2": sliced, "rms distance": float(apart)}

    levels = mcmc.noise_levels(low, high)
    logits = mcmc.mixture_logits(known, levels)
    others = known.sample(jax.random.key(10_001), number)
    setting = Setting(
        (), lambda parameters, rows: predict, (d,), low, high, 1.0, chains, number, score, others
    )
    return setting, (Excursions(1.0), Langevin(levels, logits, 1.0))


def trained(workdir: pathlib.Path, config: str):
    """The experiment and state of a run, trained first if it is missing."""
    if not (workdir / "config.json").exists():
        train_run(workdir, config)
    made = experiments.build(load_config(workdir), open_data=False)
    return made, restore_for_sampling(workdir, train.state_shapes(made))


def digits(workdir, predictor, number: int, chains: int) -> tuple[Setting, tuple]:
    """Digits, class-conditional; a chain keeps its class."""
    made, state = trained(workdir, "configs/digits/default.py:mlp")
    trained(predictor, "configs/digits/noise_level.py")
    judge = serving.load_predictor(predictor)
    network = components.network(made.config, made.num_classes)
    params = select_parameters(state, made.config.sample.ema)
    parametrization = components.parametrization(made.config)

    def predict(params, rows: int):
        labels = jnp.arange(rows) % made.num_classes

        def apply(x, label):
            return network.apply({"params": params}, x, label, labels)

        known = network_predict(apply, made.schedule, parametrization)
        return mcmc.exploding(made.schedule, known)

    train_half, held_out = (
        data.in_memory(data.create("digits", split=half)) for half in ("train", "test")
    )
    probe = reference.probe(train_half, workdir)
    features = probe.features(np.asarray(data.to_float(held_out.images)))

    def score(x) -> dict[str, float]:
        images = np.asarray(data.to_float(np.asarray(to_uint8(x))))
        found = probe.features(images)
        manifold = metrics.precision_recall(features, found)
        return {
            "Frechet": metrics.frechet_distance(features, found),
            "precision": manifold.precision,
            "recall": manifold.recall,
        }

    noise = mcmc.noise_range(made.schedule)
    real = data.to_float(train_half.images)
    setting = Setting(
        params, predict, made.shape, 0.02, noise.t_max, 2.0, chains, number, score, real
    )
    return setting, (Excursions(2.0), Langevin(judge.levels, judge.logits, 2.0))


def compare(setting: Setting, arms, names, budgets, seeds, out: pathlib.Path) -> dict:
    """Scores by arm, integrator and budget: a list of dicts, one a seed. Goes on with a file."""
    found: dict = json.loads(out.read_text()) if out.exists() else {}
    for arm in arms:
        for name in names:
            for budget in budgets:
                key = f"{'alone' if arm is None else arm.title}/{name}/{budget}"
                if key in found:
                    continue
                scores = [
                    setting.alone(name, budget, seed)
                    if arm is None
                    else setting.by_chains(arm, name, budget, seed)
                    for seed in seeds
                ]
                if None in scores:
                    continue
                found[key] = scores
                print(key, json.dumps(scores), flush=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: dict, names, budgets, titles, metric: str, digits: int = 3) -> str:
    """Mean and, where there are several seeds, half the range of a metric."""
    lines = [f"| {metric} | " + " | ".join(f"{budget} calls" for budget in budgets) + " |"]
    lines.append("| --- |" + " --- |" * len(budgets))
    for name in names:
        for title in titles:
            row = []
            for budget in budgets:
                scores = found.get(f"{title}/{name}/{budget}")
                if scores is None:
                    row.append("-")
                    continue
                values = np.array([score[metric] for score in scores])
                spread = (values.max() - values.min()) / 2
                text = f"{values.mean():.{digits}f}"
                row.append(text + (f" ± {spread:.{digits}f}" if len(values) > 1 else ""))
            lines.append(f"| {name}, {title} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(found, names, budgets, titles, metric: str, floor: float, path: pathlib.Path) -> None:
    """A panel for each integrator: the metric against the budget, an arm a line."""
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        for title in titles:
            known = [b for b in budgets if f"{title}/{name}/{b}" in found]
            means = [np.mean([s[metric] for s in found[f"{title}/{name}/{b}"]]) for b in known]
            axes.plot(known, means, "o-", label=title)
        axes.axhline(floor, color="grey", linestyle="--", label="real")
        axes.set(title=name, yscale="log", xlabel="network calls a sample")
        if place % columns == 0:
            axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=80)


def portrait(setting: Setting, arm, budget: int, path: pathlib.Path) -> None:
    """A picture of one chain, and how all of them mix, as they are at a budget."""
    made, left = split("dpm_solver_pp", budget, arm.share(budget), setting.low, setting.data_range)
    picked = setting.walked(arm, *arm.steps(left))(99)
    samples = setting.finish("dpm_solver_pp", made.calls)(picked, setting.keys(99))
    rounds = setting.number // setting.chains
    states, sigma, x = (
        np.asarray(leaf).reshape(rounds, setting.chains, *leaf.shape[1:])
        for leaf in (picked.x, picked.sigma, samples)
    )
    mcmc.diagnostics.picture(states[:, 3], sigma[:, 3], x[:, 3], path)
    # Against the other chains of its class, which share their mean.
    own = (
        x
        - x.mean(axis=0).reshape(-1, 10, *x.shape[2:]).mean(axis=0)[np.arange(setting.chains) % 10]
    )
    statistics = {"brightness": x.mean(axis=(2, 3, 4))}
    if np.ptp(sigma):  # an excursion always ends at one level
        statistics["log sigma"] = np.log(sigma)
    main_axis = np.linalg.svd(own.reshape(-1, own[0, 0].size), full_matrices=False)[2][0]
    statistics["first principal component"] = own.reshape(rounds, setting.chains, -1) @ main_axis
    for name, found in mcmc.diagnostics.mixing(statistics).items():
        print(f"{arm.title} {budget} {name}: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/mlp"))
    parser.add_argument("--predictor", type=pathlib.Path, default=pathlib.Path("runs/noise"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/dmcmc"))
    parser.add_argument("--part", choices=["mixture", "digits", "both"], default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301, 302])
    parser.add_argument("--quick", action="store_true", help="few samples, one seed, one budget")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--names", nargs="+", choices=list(mcmc.INTEGRATORS), default=list(NAMES))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--choose", action="store_true", help="compare settings of the chain")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = (200, 40) if options.quick else (1500, 100)
    if options.choose:
        choose(*digits(options.workdir, options.predictor, *sizes), options)
        return
    seeds = options.seeds[:1] if options.quick else options.seeds
    if options.part in ("mixture", "both"):
        setting, arms = mixture(*((400, 40) if options.quick else (4000, 200)))
        run("mixture", setting, arms, (8, 12, 16, 24), seeds, options)
    if options.part in ("digits", "both"):
        setting, arms = digits(options.workdir, options.predictor, *sizes)
        run("digits", setting, arms, (8, 10, 16, 20, 40), seeds, options)
        for arm in arms:
            if arm.title in options.arms:
                portrait(setting, arm, 10, options.out / f"chain_{arm.title.lower()}.png")


def choose(setting, arms, options) -> None:
    """Settings of the chain beside each other, a line each."""
    names, budgets = ("kar1", "rd", "em"), (8, 16, 40)
    arms = [
        dataclasses.replace(
            arms[0], **wish, title=", ".join(f"{k} {v}" for k, v in wish.items()) or arms[0].title
        )
        for wish in CANDIDATES
    ]
    if options.quick:
        names, budgets, arms = names[:1], budgets[:1], arms[:2]
    found = compare(setting, arms, names, budgets, (7,), options.out / "choose.json")
    titles = [arm.title for arm in arms]
    for metric in ("Frechet", "recall"):
        print(f"\n{table(found, names, budgets, titles, metric)}")


def run(part: str, setting, arms, budgets, seeds, options) -> None:
    """One part: scores, tables, plots."""
    names = [name for name in NAMES if name in options.names]
    if options.quick:
        names, budgets = ("kar1", "em"), budgets[:1]
    chosen = [arm for arm in (None, *arms) if (arm.title if arm else "alone") in options.arms]
    budgets = [budget for budget in budgets if not options.budgets or budget in options.budgets]
    found = compare(setting, chosen, names, budgets, seeds, options.out / f"{part}.json")
    titles = options.arms
    for metric in next(iter(found.values()))[0]:
        print(f"\n{table(found, names, budgets, titles, metric)}")
        if metric in ("sliced W2", "rms distance", "Frechet"):
            path = options.out / f"{part}_{metric.replace(' ', '_').lower()}.png"
            plot(found, names, budgets, titles, metric, setting.floor[metric], path)


if __name__ == "__main__":
    main()
