"""Denoising MCMC from a config: what it draws, that it goes on, and what it says of mistakes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import chains, configuration, mcmc, parallel, sampling
from diffjax.experiment import build
from diffjax.schedules import EDM
from diffjax.systems import NoisePredictor, Request

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"{ROOT}/tests/data/digits.py:quick"
CHAINS = (
    "sampler=dmcmc",
    "model.width=8",
    "model.depth=1",
    "sample.calls=6",
    "sample.solver=dpm_solver_pp_2m",
    "sample.guidance=1.0",
    "dmcmc.chains=40",
    "dmcmc.start=dpm_solver_pp",
    "dmcmc.start_calls=2",
    "dmcmc.burn_in=1",
    "dmcmc.predictor=runs/noise",
)
LEVELS = mcmc.noise_levels(0.002, 80.0, 50)


def by_length(x):
    """A judge that goes by the length of ``x`` alone."""
    length = jnp.sqrt(jnp.mean(x**2, axis=(1, 2, 3)))
    return -20 * (jnp.log(LEVELS) - 0.5 * jnp.log(jnp.maximum(length**2 - 0.5, 0.01))[:, None]) ** 2


PREDICTOR = NoisePredictor(by_length, LEVELS, (8, 8, 1))


def make(*overrides, predictor=PREDICTOR):
    arguments = [f"--config.{override}" for override in (*CHAINS, *overrides)]
    config = configuration.override(configuration.load(QUICK), arguments)
    return build(config, predictor=predictor)


@pytest.fixture(scope="module")
def experiment():
    return make()


@pytest.fixture(scope="module")
def state(experiment):
    example = {"image": np.zeros((1, 8, 8, 1), np.uint8), "label": np.zeros(1, np.int32)}
    return jax.jit(experiment.system.init)(jax.random.key(0), example)


def draw(experiment, state, number, seed=3):
    labels = np.arange(number, dtype=np.int32) % 10
    return sampling.draw(experiment, state, number=number, labels=labels, seed=seed)


@pytest.fixture(scope="module")
def hundred(experiment, state):
    return draw(experiment, state, 100)


def test_what_is_drawn(hundred, experiment):
    assert hundred.images.shape == (100, 8, 8, 1) and hundred.images.dtype == np.uint8
    assert hundred.nfe == experiment.config.sample.calls == 6
    # The last state of a window is the first of the next, and may be the least noisy of both.
    assert len(np.unique(hundred.images.reshape(100, -1), axis=0)) > 90
    assert hundred.chains.state.x.shape == (40, 8, 8, 1)
    assert hundred.chains.round == 3
    assert chains.start_calls(experiment.config) == 2 + 1


def test_chains_go_on_from_a_file(hundred, state, tmp_path):
    """Forty samples, then sixty more from the saved chains, are the hundred."""
    first = draw(make(), state, 40)
    path = tmp_path / "standing.chains.npz"
    sampling.save_chains(path, first.chains)
    rest = draw(make(f"dmcmc.resume={path}"), state, 60)
    together = np.concatenate([first.images, rest.images])
    apart = np.abs(together.astype(int) - hundred.images)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-2
    with pytest.raises(ValueError, match=r"holds chains \(40, 8, 8, 1\), but this run has \(80,"):
        draw(make(f"dmcmc.resume={path}", "dmcmc.chains=80"), state, 20)
    with pytest.raises(ValueError, match="there is no such file"):
        draw(make("dmcmc.resume=nothing.npz"), state, 40)
    np.savez(path, arr_0=np.zeros(3))
    with pytest.raises(ValueError, match="holds no chains"):
        draw(make(f"dmcmc.resume={path}"), state, 40)


def test_one_device_draws_the_same_in_one_request(experiment, state, hundred):
    """All rounds in one compiled program, as a preview draws them."""
    mesh = parallel.make_mesh("sharding", 1, jax.devices()[:1])
    run, nfe = sampling.compile_draw(experiment, mesh)
    images = run(state, jax.random.key(3), np.arange(100), np.arange(100, dtype=np.int32) % 10)
    apart = np.abs(images.astype(int) - hundred.images)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-2
    assert nfe() == 6


def test_guidance_doubles_the_cost(state):
    experiment = make("sample.guidance=2.0")
    found = []

    def sample(key):
        request = Request(jnp.arange(4), jnp.arange(4), 2.0)
        found.append(experiment.system.sample(state, key, request).nfe)

    jax.eval_shape(sample, jax.random.key(0))
    assert found == [12]


def test_labels_must_suit_the_chains(experiment, state):
    with pytest.raises(ValueError, match=r"a chain keeps its class.*every config.dmcmc.chains=40"):
        labels = np.arange(80, dtype=np.int32) % 7
        sampling.draw(experiment, state, number=80, labels=labels)


def test_moves_and_levels_by_name():
    for x_move, calls in ("langevin", 6), ("mala", 7), ("renoise", 6), ("excursion", 9):
        made = make(f"dmcmc.x_move={x_move}", f"sample.calls={calls}", "dmcmc.n_skip=2")
        # What is left of the budget, less the step to the data.
        per_step = {"mala": 2, "excursion": 3}.get(x_move, 1)
        assert made.recipe.calls == calls - 2 * per_step
    for sigma_move in ("mean", "draw"):
        make(f"dmcmc.sigma_move={sigma_move}")
    without = make("dmcmc.sigma_move=langevin", "dmcmc.n_skip=1", predictor=None)
    assert without.recipe.calls == 6 - 3


MISTAKES = {
    "eta": (("dmcmc.step=0.0",), "the step size eta must be above 0, got 0.0"),
    "eta negative": (("dmcmc.step=-1.0",), "the step size eta must be above 0"),
    "unstable": (
        ("dmcmc.step=0.5", "dmcmc.lowest=0.1"),
        r"config.dmcmc.step=0.5 is unstable at the lowest level 0.1, .* below 0.04, or raise "
        r"config.dmcmc.lowest above 0.353",
    ),
    "unstable relative": (("dmcmc.step=4.0", "dmcmc.unit=noise"), "stable for 0 < c < 4"),
    "n_skip": (("dmcmc.n_skip=-1",), "config.dmcmc.n_skip must be at least 0; got -1"),
    "budget": (
        ("sample.calls=2",),
        r"config.sample.calls=2 less 2 for config.dmcmc.n_skip=2 steps of the chain leaves 0",
    ),
    "budget of the solver": (
        ("sample.solver=heun",),
        r"leaves 4 to denoise: solver 'heun' takes 2 network calls .* use 3 or 5",
    ),
    "budget of the start": (("dmcmc.start=kar2",), "kar2 makes an odd number of calls, from 3"),
    "option": (("dmcmc.nskip=2",), "Settings has no option 'nskip'; did you mean 'n_skip'"),
    "kind": (("dmcmc.burn_in=1.5",), "cannot override the config: .*burn_in"),
    "move": (("dmcmc.x_move=hmc",), "config.dmcmc.x_move: unknown name 'hmc'"),
    "level move": (("dmcmc.sigma_move=median",), "config.dmcmc.sigma_move: unknown name 'median'"),
    "select": (("dmcmc.select=best",), "unknown select 'best'"),
    "classes": (
        ("dmcmc.chains=25",),
        "config.dmcmc.chains=25 must be a multiple of the 10 classes",
    ),
    "denoise": (("sample.denoise=false",), "config.sample.denoise is False"),
    "range": (
        ("schedule.name=ve",),
        r"knows noise levels from 0.002\d* to 80, but the schedule has 0.01 to 50",
    ),
    "nothing left": (("dmcmc.highest=0.0001", "dmcmc.lowest=0.5"), "no noise level is between"),
    "sampler": (("sampler=mcmc",), "config.sampler: unknown name 'mcmc'; did you mean 'dmcmc'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name):
    overrides, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make(*overrides)


def test_a_predictor_is_needed_and_must_fit():
    with pytest.raises(ValueError, match="needs a noise-level predictor: train one"):
        make(predictor=None)
    other = PREDICTOR._replace(shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"trained on images \(32, 32, 3\), but these are \(8, 8"):
        make(predictor=other)


def test_chains_are_shared_by_devices_evenly(state):
    """Eight devices here."""
    with pytest.raises(ValueError, match="chains=20 must be a multiple of the 8 devices"):
        draw(make("dmcmc.chains=20"), state, 20)


def test_units_are_those_of_the_range():
    made = chains.settings(make("dmcmc.step=0.3").config)
    assert made.step == 0.3 and chains.DATA_RANGE == 2
    assert mcmc.noise_range(EDM(0.1, 3.0)) == EDM(pytest.approx(0.1), pytest.approx(3.0))
