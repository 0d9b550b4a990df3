"""Upsamplers: exact on a Gaussian, each row its own small image, and what a config says of them."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from diffjax import configuration, data, losses, prediction, sampling, solvers, upsampling
from diffjax.experiment import build
from diffjax.schedules import VPLinear
from diffjax.systems import Request, diffusion, sampler
from diffjax.train import state_shapes, train
from tests.test_sampling import untrained

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"{ROOT}/configs/digits/upsampler.py:quick"
TINY = ("model.ch=8", "model.ch_mult=(1,)", "model.attn_resolutions=()", "model.num_groups=2")
SHAPE, SCHEDULE = (2, 2, 1), VPLinear()


class Exact(nn.Module):
    """E[x0 | x_t, mean of x0] of x0 ~ N(0, I), told alpha: the mean is known, the rest shrinks."""

    @nn.compact
    def __call__(self, x, time, labels=None, *, low_res, train=False):
        del labels, train
        self.param("none", nn.initializers.zeros, ())
        return low_res + time[:, None, None, None] * (x - x.mean((1, 2), keepdims=True))


def exact_system(recipe, classes=0):
    return diffusion(
        Exact(),
        SCHEDULE,
        prediction.X0._replace(label=lambda schedule, t: schedule.alpha(t)),
        objective=losses.regression,
        times=losses.uniform_times,
        optimizer=optax.sgd(0.1),
        draw=sampler(SCHEDULE, recipe, SHAPE, num_classes=classes),
        num_classes=classes,
        shrink=functools.partial(data.shrink, side=1),
        ema_rates=(),
        sample_ema="",
    )


def initial(system):
    batch = {"image": np.zeros((1, *SHAPE), np.uint8), "label": np.zeros(1, np.int32)}
    return system.init(jax.random.key(0), batch)


@pytest.mark.parametrize(("solver", "calls"), [("dpm_solver_pp_2m", 30), ("ancestral", 200)])
def test_draws_the_posterior_of_a_gaussian(solver, calls):
    """Given its mean, N(0, I) in four pixels is a Gaussian with that mean and variance 3/4."""
    system = exact_system(solvers.recipe(solver, SCHEDULE, calls))
    means = jnp.linspace(-2, 2, 5000)[:, None, None, None]

    @jax.jit
    def draw(state, low_res):
        request = Request(jnp.arange(5000), low_res=low_res)
        return system.sample(state, jax.random.key(1), request).images

    x = draw(initial(system), means)
    np.testing.assert_allclose(x.mean((1, 2), keepdims=True), means, atol=2e-3)
    inside = np.asarray(x - means).reshape(5000, 4)
    error = np.sqrt(2 / 5000)
    np.testing.assert_allclose(np.cov(inside.T), np.eye(4) - 0.25, atol=5 * error)


def test_each_row_is_guided_with_its_own_small_image():
    """Guidance between two equal predictions changes nothing, if both see the same small image."""
    system = exact_system(solvers.recipe("ddim", SCHEDULE, 5), classes=3)
    state, means = initial(system), jnp.arange(6.0)[:, None, None, None]

    def draw(guidance):
        request = Request(jnp.arange(6), jnp.arange(6) % 3, guidance, means)
        return system.sample(state, jax.random.key(1), request)

    plain, guided = draw(1.0), draw(3.0)
    assert (plain.nfe, guided.nfe) == (5, 10)
    np.testing.assert_allclose(guided.images, plain.images, atol=1e-5)


def test_small_images_are_needed_where_and_only_where_they_are_seen():
    recipe = solvers.recipe("ddim", SCHEDULE, 2)
    upsampler = exact_system(recipe)
    with pytest.raises(ValueError, match="takes small images to enlarge"):
        upsampler.sample(initial(upsampler), jax.random.key(0), Request(jnp.arange(1)))
    experiment = build(configuration.load(f"{ROOT}/configs/digits/default.py:mlp,quick"))
    request = Request(jnp.arange(1), jnp.zeros(1, int), low_res=jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="takes no small images"):
        jax.eval_shape(
            lambda state: experiment.system.sample(state, jax.random.key(0), request).images,
            state_shapes(experiment),
        )


# In a config.


def config(*overrides, source=CONFIG):
    arguments = [f"--config.{override}" for override in overrides]
    return configuration.override(configuration.load(source), arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An upsampler, parameters of which every one matters, and where it was trained."""
    workdir = tmp_path_factory.mktemp("upsampler")
    experiment = build(config(*TINY, "train.steps=2", "train.sample_every=2", "sample.calls=3"))
    train(experiment, workdir)
    return experiment, untrained(experiment), workdir


def test_training_draws_what_it_enlarges(trained):
    assert list(trained[2].glob("samples/*.png"))


def test_from_a_file_as_another_run_writes_it(trained, tmp_path):
    """Sample i enlarges image i for its label, whatever the batch."""
    experiment, state, _ = trained
    test_half = data.in_memory(data.create("digits", split="test"))
    small, labels = upsampling.shrunk(test_half, 4, 12)
    np.savez(tmp_path / "small.npz", arr_0=small, arr_1=labels)
    named = experiment.config.copy_and_resolve_references()
    named.sample.update(low_res=f"{tmp_path}/small.npz", number=10, batch_size=4)
    path = sampling.sample(experiment._replace(config=named), state, tmp_path)
    with np.load(path) as stored:
        drawn, found = stored["arr_0"], stored["arr_1"]
    assert drawn.shape == (10, 8, 8, 1)
    with Image.open(path.with_suffix(".png")) as picture:
        sheet = np.asarray(picture)[4:36:4, 4:68:4]  # beside what it was made of
    np.testing.assert_array_equal(sheet[:, 8:], drawn[0, ..., 0])
    np.testing.assert_array_equal(sheet[::2, :8:2], small[0, ..., 0])
    np.testing.assert_array_equal(found, labels[:10])
    at_once = sampling.draw(experiment, state, number=10, labels=labels[:10], low_res=small[:10])
    apart = np.abs(drawn.astype(int) - at_once.images)
    assert apart.max() <= 1
    others = sampling.draw(experiment, state, number=10, labels=labels[:10], low_res=small[2:])
    assert (others.images != at_once.images).mean() > 0.3

    # Other small images, another file.
    np.savez(tmp_path / "small.npz", arr_0=255 - small, arr_1=labels)
    again = sampling.sample(experiment._replace(config=named), state, tmp_path)
    assert again != path and path.exists()


def test_from_the_data(trained):
    made = trained[0].config.copy_and_resolve_references()
    made.sample.low_res = "test"
    asked = upsampling.wanted(made, 10, "cycle", 800)
    whole = data.in_memory(data.create("digits", split="test"), 800)
    np.testing.assert_array_equal(asked.labels, whole.labels)
    apart = data.shrink(data.to_float(whole.images), 4) - data.to_float(asked.low_res)
    assert np.abs(apart).max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "there is no file"),
        (dict(images=np.zeros((3, 4, 4, 1), np.uint8)), "holds no images"),
        (dict(arr_0=np.zeros((3, 4, 4), np.uint8)), "not \\(n, height, width, C\\)"),
        (dict(arr_0=np.zeros((3, 8, 8, 1), np.uint8)), "images \\(8, 8, 1\\), not uint8 \\(4, 4"),
        (dict(arr_0=np.zeros((3, 4, 4, 1))), "float64 images"),
        (dict(arr_0=np.zeros((2, 4, 4, 1), np.uint8)), "has 2 images, but 3 samples"),
        (dict(arr_0=np.zeros((3, 4, 4, 1), np.uint8), arr_1=[0, 1, 10]), "integers in 0..9"),
        (dict(arr_0=np.zeros((3, 4, 4, 1), np.uint8), arr_1=[0, 1]), "3 integers in 0..9"),
    ],
)
def test_files_that_do_not_fit(trained, stored, message, tmp_path):
    made = trained[0].config.copy_and_resolve_references()
    made.sample.low_res = f"{tmp_path}/small.npz"
    if stored:
        np.savez(made.sample.low_res, **stored)
    with pytest.raises(ValueError, match=f"config.sample.low_res: .*{message}"):
        upsampling.wanted(made, 10, "cycle", 3)


def test_small_images_must_be_named(trained):
    with pytest.raises(ValueError, match="'test' or 'train' for those of the data"):
        upsampling.wanted(trained[0].config, 10, "cycle", 3)
    plain = config("sample.low_res=test", source=f"{ROOT}/configs/digits/default.py:quick")
    with pytest.raises(ValueError, match="this run is no upsampler"):
        upsampling.wanted(plain, 10, "cycle", 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.low_res=0",), "set config.data.low_res to their height"),
        (("data.low_res=3",), "images 8x8 cannot be shrunk to a height of 3"),
        (("network=adm",), "network 'adm' sees no small images"),
    ],
)
def test_configs_that_do_not_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(config(*TINY, *overrides))


def test_chains_draw_no_enlargements():
    with pytest.raises(ValueError, match="drawn by a solver"):
        upsampling.shrinking(config("sampler=dmcmc"))
