"""Denoising MCMC from a config: what ``config.dmcmc`` says when ``config.sampler`` is ``dmcmc``.

The section is open, as ``config.model`` is: the fields of :class:`Settings` are its options, all
with defaults. Solver, grid and the budget of a sample are those of ``config.sample``: its ``calls``
are what a sample costs altogether, the steps of the chain included. Lengths are in units of the
range of the data, which is 2 for images in [-1, 1], so that published constants hold as they are.
"""

import math
from typing import NamedTuple

import ml_collections

from diffjax import mcmc, solvers
from diffjax.mcmc import Move
from diffjax.options import about, choose, keywords
from diffjax.schedules import EDM, Schedule
from diffjax.solvers import Recipe, multistep, timesteps
from diffjax.systems import NoisePredictor, chain_sampler
from diffjax.systems.chains import Walk

__all__ = ["DATA_RANGE", "Settings", "recipe", "settings", "start_calls", "walk"]

DATA_RANGE = 2.0  # of images in [-1, 1]

SIGMA_MOVES = {
    "draw": mcmc.posterior_draw,
    "mean": mcmc.posterior_mean,
    "mode": mcmc.posterior_mode,
}


class Settings(NamedTuple):
    """The options of ``config.dmcmc``.

    Attributes:
        predictor: Workdir of a noise-level predictor, trained with the same schedule.
        chains: How many chains run side by side; with labels, a multiple of the classes.
        n_skip: Steps of a chain for each sample.
        x_move: ``'langevin'``, ``'mala'``, ``'renoise'`` or ``'excursion'``.
        step: Of Langevin moves ``eta``; of ``'renoise'`` the share of the noise made anew.
        unit: Of ``eta``: ``'range'``, the squared range of the data, or ``'noise'``, the level's
            variance.
        top: Of ``'excursion'``, the level it goes up to, in units of the range.
        calls: Of ``'excursion'``, the network calls of its way down, by DPM-Solver++.
        sigma_move: ``'mode'``, ``'mean'`` or ``'draw'`` of the predictor; or ``'langevin'``, which
            needs none but two network calls; or ``'known'``: an excursion comes down to a level
            drawn between ``lowest`` and ``highest``, and no predictor is needed.
        lowest: Lowest level of the chain, in units of the range; 0 for the lowest at which the step
            is stable.
        highest: Highest level; 0 for the schedule's.
        select: ``'least_noisy'`` or ``'last'``: which state of a window is denoised.
        start: Integrator that makes the first states, one of ``mcmc.INTEGRATORS``.
        start_calls: Its calls.
        start_noise: Noise added to them, in units of the range.
        burn_in: Steps of the chain before its first sample.
        resume: File ``*.chains.npz`` of chains to go on with; '' to begin.
    """

    predictor: str = ""
    chains: int = 100
    n_skip: int = 2
    x_move: str = "langevin"
    step: float = 0.5
    unit: str = "range"
    top: float = 1.5
    calls: int = 3
    sigma_move: str = "mode"
    lowest: float = 0.0
    highest: float = 0.0
    select: str = "least_noisy"
    start: str = "kar2"
    start_calls: int = 37
    start_noise: float = 0.5
    burn_in: int = 20
    resume: str = ""


def settings(config: ml_collections.ConfigDict) -> Settings:
    """The section ``config.dmcmc``, checked by itself.

    Raises:
        ValueError: An option is unknown, of another kind, or out of its range.
    """
    made = Settings(**keywords("dmcmc", Settings, config.dmcmc))
    low = {"chains": 1, "n_skip": 0, "start_calls": 1, "start_noise": 0, "burn_in": 0}
    low |= {"lowest": 0, "highest": 0, "calls": 1}
    for name, least in low.items():
        if not getattr(made, name) >= least:
            raise ValueError(
                f"config.dmcmc.{name} must be at least {least}; got {getattr(made, name)!r}"
            )
    choose("dmcmc.sigma_move", made.sigma_move, {**SIGMA_MOVES, "known": None, "langevin": None})
    choose("dmcmc.unit", made.unit, {"range": None, "noise": None})
    choose("dmcmc.start", made.start, mcmc.INTEGRATORS)
    if made.sigma_move == "known" and (made.x_move != "excursion" or not made.lowest):
        raise ValueError(
            "config.dmcmc.sigma_move='known': a level is known after an excursion down to one: set "
            "config.dmcmc.x_move='excursion', and lowest and highest"
        )
    return made


def recipe(config: ml_collections.ConfigDict, schedule: Schedule) -> Recipe:
    """Solver and number of steps that denoise a state of the chain; its grid starts at pure noise.

    Raises:
        ValueError: The budget of a sample is too small, or the solver cannot make it.
    """
    sample, chosen = config.sample, settings(config)
    solver = choose("sample.solver", sample.solver, solvers.SOLVERS)
    choose("sample.grid", sample.grid, timesteps.GRIDS)
    if not sample.denoise:
        raise ValueError(
            "config.sample.denoise is False, but samples of chains end with the step to the data: "
            "set it to True"
        )
    steps = chosen.n_skip * _evaluations(chosen)
    left = sample.calls - steps
    try:
        options = keywords(
            "sample.options", solver, sample.options, reserved=("schedule", "gradient")
        )
        return solvers.recipe(
            sample.solver, mcmc.noise_range(schedule), left, grid=sample.grid, **options
        )
    except ValueError as error:
        raise ValueError(
            f"config.sample.calls={sample.calls} less {steps} for config.dmcmc.n_skip="
            f"{chosen.n_skip} steps of the chain leaves {left} to denoise: {error}"
        ) from error


def walk(
    config: ml_collections.ConfigDict,
    schedule: Schedule,
    made: Recipe,
    shape: tuple[int, int, int],
    num_classes: int,
    predictor: NoisePredictor | None,
) -> Walk:
    """How the chains of a config walk, and how samples are made of them.

    Args:
        config: The config.
        schedule: The forward process that the network knows.
        made: From :func:`recipe`.
        shape: Shape of an image.
        num_classes: Number of classes, which must divide the number of chains.
        predictor: What ``config.dmcmc.predictor`` names, loaded.

    Raises:
        ValueError: The options do not fit each other, the predictor or the data.
    """
    chosen = settings(config)
    if num_classes and chosen.chains % num_classes:
        raise ValueError(
            f"config.dmcmc.chains={chosen.chains} must be a multiple of the {num_classes} classes: "
            "a chain keeps its class"
        )
    noise = mcmc.noise_range(schedule)
    with about("dmcmc"):
        x_move = _x_move(chosen)
        sigma_move = _sigma_move(chosen, noise, math.prod(shape), shape, predictor)

        def kernel(predict):
            return mcmc.kernel(predict, x_move, sigma_move)

        start = mcmc.integrator(
            chosen.start, chosen.start_calls, low=noise.t_min, data_range=DATA_RANGE
        )
        sampler = mcmc.denoising_mcmc(
            kernel,
            mcmc.along(
                made.solver,
                made.ts.shape[0] - 1,
                noise.t_min,
                grid=config.sample.grid,
                end="stay",
            ),
            mcmc.Start(
                noise.t_max, start, chosen.start_noise * DATA_RANGE, ((kernel, chosen.burn_in),)
            ),
            n_skip=chosen.n_skip,
            low=noise.t_min,
            select=chosen.select,
        )
    return chain_sampler(schedule, sampler, shape, chosen.chains)


def start_calls(config: ml_collections.ConfigDict) -> int:
    """Network calls of a chain before its first sample: begin and burn-in."""
    chosen = settings(config)
    return chosen.start_calls + chosen.burn_in * _evaluations(chosen)


def _evaluations(chosen: Settings) -> int:
    with about("dmcmc"):
        return _x_move(chosen).evaluations + (2 if chosen.sigma_move == "langevin" else 0)


def _x_move(chosen: Settings) -> Move:
    def eta():
        return _eta(chosen) if chosen.unit == "range" else mcmc.relative(chosen.step)

    known = chosen.sigma_move == "known"
    ends = (chosen.lowest * DATA_RANGE, chosen.highest * DATA_RANGE) if known else None
    moves = {
        "langevin": lambda: mcmc.langevin(eta()),
        "mala": lambda: mcmc.mala(eta()),
        "renoise": lambda: mcmc.renoise(chosen.step),
        "excursion": lambda: mcmc.excursion(
            chosen.top * DATA_RANGE, multistep(EDM()), chosen.calls, levels=ends
        ),
    }
    return choose("dmcmc.x_move", chosen.x_move, moves)()


def _eta(chosen: Settings) -> float:
    return chosen.step * DATA_RANGE**2


def _lowest(chosen: Settings) -> float:
    """The lowest level of the chain; checks that a constant step is stable there."""
    lowest = chosen.lowest * DATA_RANGE
    if chosen.x_move in ("langevin", "mala") and chosen.unit == "range":
        edge = _eta(chosen) ** 0.5 / 2
        if not lowest:
            return 1.01 * edge
        if lowest <= edge:
            raise ValueError(
                f"config.dmcmc.step={chosen.step:g} is unstable at the lowest level "
                f"{chosen.lowest:g}, as eta must be below 4 sigma^2: lower it below "
                f"{4 * chosen.lowest**2:g}, or raise config.dmcmc.lowest above "
                f"{edge / DATA_RANGE:g}"
            )
    return lowest


def _sigma_move(
    chosen: Settings,
    noise: EDM,
    dimensions: int,
    shape: tuple[int, ...],
    predictor: NoisePredictor | None,
) -> Move | None:
    if chosen.sigma_move == "known":
        return None
    low = max(_lowest(chosen), noise.t_min)
    high = min(chosen.highest * DATA_RANGE or noise.t_max, noise.t_max)
    if chosen.sigma_move == "langevin":
        return mcmc.log_langevin(mcmc.score_rate, 1 / (2 * dimensions), low, high, 2)
    if predictor is None:
        raise ValueError(
            f"sigma_move={chosen.sigma_move!r} needs a noise-level predictor: train one, as with "
            "configs/digits/noise_level.py, and set config.dmcmc.predictor to its workdir; or use "
            "config.dmcmc.sigma_move='langevin'"
        )
    if predictor.shape != tuple(shape):
        raise ValueError(
            f"config.dmcmc.predictor={chosen.predictor!r} was trained on images "
            f"{predictor.shape}, but these are {tuple(shape)}"
        )
    top = predictor.levels[0]
    if abs(math.log(top / noise.t_max)) > 0.01 or predictor.levels[-1] > 1.1 * noise.t_min:
        raise ValueError(
            f"config.dmcmc.predictor={chosen.predictor!r} knows noise levels from "
            f"{predictor.levels[-1]:.3g} to {top:.3g}, but the schedule has {noise.t_min:.3g} to "
            f"{noise.t_max:.3g}: train it with the same schedule"
        )
    logits = mcmc.within(predictor.levels, predictor.logits, low, high)
    return SIGMA_MOVES[chosen.sigma_move](predictor.levels, logits)
