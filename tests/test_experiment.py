"""From a config to an experiment: every name becomes what it names, with its options."""

import functools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import (
    components,
    configuration,
    guidance,
    losses,
    optimizers,
    parallel,
    prediction,
    solvers,
)
from diffjax.data import to_float
from diffjax.experiment import abstract_batch, build, check_devices, sample_labels
from diffjax.schedules import EDM, VE, Cosine, Discrete, FlowMatching, SubVP, VPLinear
from diffjax.systems import Request, sampler

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"{ROOT}/tests/data/digits.py:quick"


def make(*overrides):
    """The config of a very small experiment, with overrides ``name=value``."""
    small = ("model.width=8", "model.depth=1")
    arguments = [f"--config.{override}" for override in (*small, *overrides)]
    return configuration.override(configuration.load(QUICK), arguments)


# Schedules, and what makes a config of each.
NAMED = {
    "cosine": Cosine,
    "discrete_cosine": Discrete,
    "discrete_linear": Discrete,
    "discrete_scaled_linear": Discrete,
    "edm": EDM,
    "flow_matching": FlowMatching,
    "subvp": SubVP,
    "ve": VE,
    "vp_linear": VPLinear,
}


def test_every_schedule_is_listed_here():
    assert NAMED.keys() == components.SCHEDULES.keys()


@pytest.mark.parametrize("name", NAMED)
def test_schedule_by_name(name):
    experiment = build(make(f"schedule.name={name}", "sample.grid=log_snr"))
    assert type(experiment.schedule) is NAMED[name]
    assert experiment.recipe.ts[0] == pytest.approx(experiment.schedule.t_max)


def test_schedule_takes_its_options():
    options = ("schedule.name=discrete_linear", "schedule.options.steps=10")
    schedule = components.schedule(make(*options, "schedule.options.beta_max=0.3"))
    chex.assert_trees_all_close(schedule.betas, np.linspace(1e-4, 0.3, 10))


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "flow", "edm", "ve"])
def test_parametrization_by_name(name):
    chosen = components.parametrization(make(f"prediction.parametrization={name}"))
    schedule, t = EDM(), jnp.asarray(2.0)
    expected = prediction.parametrization(name, sigma_data=0.5)
    assert chosen.label(schedule, t) == expected.label(schedule, t)
    assert chosen.scale(schedule, t) == expected.scale(schedule, t)


def test_learned_variance_reaches_network_and_prediction():
    options = ("prediction.learned_variance=true", "sample.solver=ancestral")
    config = make(*options, "sample.options.variance=learned", "loss.label_dropout=0.2")
    experiment = build(config)
    state = jax.eval_shape(experiment.system.init, jax.random.key(0), abstract_batch(experiment, 1))
    assert state.params["out"]["kernel"].shape == (8, 2 * 64)

    def sample(state, key):
        request = Request(jnp.arange(2), jnp.zeros(2, int))
        return experiment.system.sample(state, key, request).images

    assert jax.eval_shape(sample, state, jax.random.key(0)).shape == (2, 8, 8, 1)


def test_network_is_told_what_the_data_say():
    network = components.network(make(), num_classes=10)
    assert (network.num_classes, network.width, network.dtype) == (10, 8, jnp.float32)
    assert build(make()).num_classes == 10
    assert build(make("data.conditional=false")).num_classes == 0
    assert components.network(make("model.dtype=bfloat16"), 0).dtype == jnp.bfloat16


@pytest.mark.parametrize("name, embedding", [("edm", "fourier"), ("eps", "sinusoidal")])
def test_mlp_embeds_times_of_its_parametrization(name, embedding):
    config = make(f"prediction.parametrization={name}")
    assert components.network(config, 0).time_embedding == embedding
    config = make(f"prediction.parametrization={name}", "model.time_embedding=sinusoidal")
    assert components.network(config, 0).time_embedding == "sinusoidal"


def test_registries_are_open(monkeypatch):
    class Scale(nn.Module):
        factor: float = 2.0
        num_classes: int = 0
        learned_variance: bool = False

        @nn.compact
        def __call__(self, x, time, labels=None, *, train=False):
            return self.param("scale", nn.initializers.constant(self.factor), ()) * x

    monkeypatch.setitem(components.NETWORKS, "scale", Scale)
    config = make("network=scale")
    config.model = dict(factor=3.0)
    experiment = build(config)
    batch = {"image": np.zeros((1, 8, 8, 1), np.uint8), "label": np.zeros(1, np.int32)}
    assert experiment.system.init(jax.random.key(0), batch).params["scale"] == 3.0
    config.model = dict(faktor=3.0)
    with pytest.raises(ValueError, match=r"Scale has no option 'faktor'; did you mean 'factor'"):
        build(config)


def test_times_take_their_options():
    config = make("loss.times_options.mean=0.5", "loss.times_options.std=0.01")
    slots = losses.Slots(jnp.arange(4), 4)
    drawn = components.times(config, EDM())(EDM(), jax.random.key(0), slots)
    expected = losses.log_normal_times(EDM(), jax.random.key(0), slots, mean=0.5, std=0.01)
    chex.assert_trees_all_equal(drawn, expected)


OBJECTIVES = {
    "plain": (
        ["loss.target=v", "loss.weighting="],
        functools.partial(losses.regression, target="v"),
    ),
    "weighted": (
        ["loss.weighting=min_snr", "loss.weighting_options.gamma=2.0"],
        functools.partial(losses.weighted_x0, weighting=losses.min_snr_weight(2.0)),
    ),
    "EDM's own sigma_data": (
        ["prediction.sigma_data=0.3"],
        functools.partial(losses.weighted_x0, weighting=losses.edm_weight(0.3)),
    ),
    "another sigma_data": (
        ["prediction.sigma_data=0.3", "loss.weighting_options.sigma_data=0.7"],
        functools.partial(losses.weighted_x0, weighting=losses.edm_weight(0.7)),
    ),
}


@pytest.mark.parametrize("overrides, expected", OBJECTIVES.values(), ids=OBJECTIVES)
def test_objective(overrides, expected):
    x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 1))
    t = jnp.array([0.1, 1.0, 10.0])

    def predict(x, t):
        return prediction.from_x0(EDM(), x, t, 0.5 * x)

    objective = components.objective(make(*overrides))
    both = jax.jit(lambda: tuple(f(predict, EDM(), x0, t, noise) for f in (objective, expected)))()
    chex.assert_trees_all_equal(*both)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_and_decays(decay):
    overrides = ("train.steps=110", "optimizer.warmup_steps=10", "optimizer.learning_rate=2.0")
    rate = optimizers.learning_rate(make(*overrides, f"optimizer.decay={decay}"))
    along = np.array([rate(step) for step in (0, 5, 10, 35, 60, 110, 500)])
    quarter, half, end = {
        "constant": (2.0, 2.0, 2.0),
        "linear": (1.5, 1.0, 0.0),
        "cosine": (1 + np.sqrt(0.5), 1.0, 0.0),
    }[decay]
    np.testing.assert_allclose(along, [0, 1, 2, quarter, half, end, end], atol=1e-6)


def test_no_warm_up_starts_at_the_peak():
    config = make("optimizer.warmup_steps=0", "optimizer.learning_rate=0.1")
    assert optimizers.learning_rate(config)(0) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    overrides = ("train.steps=20", "optimizer.warmup_steps=100", "optimizer.learning_rate=0.1")
    assert optimizers.learning_rate(make(*overrides))(20) == pytest.approx(0.1 * 20 / 100)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_optimizer_is_that_of_optax(clip):
    overrides = ("optimizer.name=sgd", "optimizer.warmup_steps=0", "optimizer.decay=constant")
    options = ("optimizer.options={'momentum': 0.9}", "optimizer.learning_rate=0.1")
    optimizer = optimizers.optimizer(make(*overrides, *options, f"optimizer.clip_norm={clip}"))
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    clipped = jax.tree.map(lambda leaf: leaf * (clip / 5 if clip else 1), grads)
    expected = optax.sgd(0.1, momentum=0.9)
    state, expected_state = optimizer.init(params), expected.init(params)
    for _ in range(2):
        update, state = optimizer.update(grads, state, params)
        expected_update, expected_state = expected.update(clipped, expected_state, params)
        chex.assert_trees_all_close(update, expected_update, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "lamb", "radam", "noisy_sgd"])
def test_any_optimizer_of_optax(name):
    options = {"noisy_sgd": {"seed": 0}}.get(name, {})
    config = make(f"optimizer.name={name}", f"optimizer.options={options}")
    assert callable(optimizers.optimizer(config).update)


def test_recipe_is_the_solvers():
    experiment = build(make("sample.solver=heun", "sample.calls=7", "sample.grid=uniform"))
    expected = solvers.recipe("heun", EDM(), 7, grid="uniform")
    chex.assert_trees_all_equal(experiment.recipe.ts, expected.ts)
    assert experiment.recipe.calls == 7


def test_draw_guides_in_its_interval_and_thresholds():
    """The same as composed by hand."""
    settings = ("sample.guidance=3.0", "sample.guidance_interval=(0.1,5.0)")
    config = make(*settings, "sample.threshold=static")
    schedule = components.schedule(config)
    recipe = components.recipe(config, schedule)
    draw = components.draw(config, schedule, recipe, (4, 4, 1), 10)
    by_hand = sampler(
        schedule,
        recipe,
        (4, 4, 1),
        num_classes=10,
        scale=lambda scale, t: guidance.interval(scale, 0.1, 5.0)(t),
        limit=lambda predict: guidance.threshold(predict, schedule),
    )

    def predict(x, t, labels):
        target = (labels[:, None, None, None] - 5) / 2.0
        return prediction.from_x0(schedule, x, t, 0.5 * target + 0.1 * x)

    request = Request(jnp.arange(3), jnp.array([0, 5, 9]), 3.0)
    drawn, expected = jax.jit(
        lambda key: (draw(predict, key, request), by_hand(predict, key, request))
    )(jax.random.key(0))
    chex.assert_trees_all_close(drawn, expected)
    assert drawn.nfe == 12
    assert jnp.abs(drawn.images).max() == 1.0


def test_empirical_network_draws_training_images_of_the_class_asked_for():
    config = make("network=empirical", "sample.calls=20")
    experiment = build(config)
    state = experiment.system.init(jax.random.key(0), None)
    labels = sample_labels("cycle", 10, experiment.num_classes)
    request = Request(jnp.arange(10), jnp.asarray(labels))
    samples = jax.jit(experiment.system.sample)(state, jax.random.key(0), request)
    train = np.asarray(to_float(experiment.source.images)).reshape(-1, 64)
    drawn = np.asarray(samples.images).reshape(-1, 64)
    distance = np.linalg.norm(drawn[:, None] - train[None], axis=-1)
    assert distance.min(axis=1).max() < 0.1
    np.testing.assert_array_equal(experiment.source.labels[distance.argmin(axis=1)], labels)


def test_build_changes_no_config_and_fills_in_what_the_data_say():
    config = make()
    before = config.to_dict()
    experiment = build(config)
    assert config.to_dict() == before
    assert experiment.shape == experiment.config.data.shape == (8, 8, 1)
    assert experiment.config.data.num_classes == 10
    assert build(experiment.config).config == experiment.config


def test_a_recorded_shape_needs_no_data():
    config = build(make()).config
    config.data.source = "folder:nowhere"
    experiment = build(config, open_data=False)
    assert experiment.source is None
    assert (experiment.shape, experiment.num_classes) == ((8, 8, 1), 10)
    with pytest.raises(ValueError, match=r"config\.data: folder:nowhere"):
        build(config)


def test_other_data_than_recorded_are_refused():
    config = build(make()).config
    config.data.shape = (16, 16, 1)
    with pytest.raises(ValueError, match=r"data\.shape is \(16, 16, 1\), but .*'digits' have"):
        build(config)
    config.data.update(shape=(8, 8, 1), num_classes=0)
    with pytest.raises(ValueError, match=r"conditional is True, but the data have no labels"):
        build(config, open_data=False)


def test_axis_follows_the_parallel_mode():
    experiment = build(make("parallel.mode=pmap"))
    batch = abstract_batch(experiment, 2)
    key = jax.random.key(0)
    state = jax.eval_shape(experiment.system.init, key, batch)
    with pytest.raises(NameError, match=parallel.AXIS):
        jax.eval_shape(experiment.system.update, state, batch, key)
    update = jax.make_jaxpr(experiment.system.update, axis_env=[(parallel.AXIS, 2)])
    assert "psum" in str(update(state, batch, key))


def test_labels():
    np.testing.assert_array_equal(sample_labels("cycle", 5, 3), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(sample_labels("2,0", 5, 3), [2, 0, 2, 0, 2])
    assert sample_labels("cycle", 5, 0) is None and sample_labels("random", 5, 0) is None
    drawn = sample_labels("random", 3000, 3, seed=1)
    np.testing.assert_array_equal(drawn, sample_labels("random", 3000, 3, seed=1))
    assert (np.bincount(drawn, minlength=3) > 900).all() and drawn.dtype == np.int32


@pytest.mark.parametrize("devices, parts, fsdp", [(1, 1, 1), (8, 2, 4), (16, 4, 16)])
def test_batches_that_fit(devices, parts, fsdp):
    check_devices(make(f"train.microbatches={parts}", f"parallel.fsdp={fsdp}"), devices)


@pytest.mark.parametrize(
    "devices, parts, fsdp, message",
    [
        (3, 1, 1, r"batch_size=64 must be a multiple of 3"),
        (8, 3, 1, r"multiple of 24: devices \(8\) times config\.train\.microbatches \(3\)"),
        (8, 1, 16, r"fsdp=16 must divide the 8 devices"),
    ],
)
def test_batches_that_do_not_fit(devices, parts, fsdp, message):
    config = make(f"train.microbatches={parts}", f"parallel.fsdp={fsdp}")
    with pytest.raises(ValueError, match=message):
        check_devices(config, devices)
