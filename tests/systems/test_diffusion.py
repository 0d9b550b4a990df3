"""The standard system: what it trains on, and what its samples depend on."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from diffjax import data, guidance, losses, prediction, solvers
from diffjax.losses import Slots
from diffjax.models import MLP
from diffjax.prediction import Prediction
from diffjax.random import normal
from diffjax.schedules import EDM, VPLinear, expand
from diffjax.solvers import Recipe
from diffjax.systems import Request, diffusion, sampler
from diffjax.systems.diffusion import drop_labels

SHAPE, CLASSES = (4, 4, 1), 3
SCHEDULE = EDM()
RECIPE = solvers.recipe("ddim", SCHEDULE, 4, eta=1.0)  # with noise at every step


class Tiny(nn.Module):
    """A network every parameter of which matters from the start."""

    num_classes: int = CLASSES
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, time, labels=None, *, train=False):
        h = nn.Dense(8)(x.reshape(len(x), -1))
        if self.num_classes:
            h += nn.Embed(self.num_classes + 1, 8, name="label")(labels)
        h = jnp.tanh(h + time[:, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(x[0].size)(h).reshape(x.shape)


def make(network=None, num_classes=CLASSES, *, sampling=None, **options):
    defaults = dict(
        objective=functools.partial(losses.weighted_x0, weighting=losses.edm_weight()),
        times=losses.log_normal_times,
        optimizer=optax.sgd(0.1),
        draw=sampler(SCHEDULE, RECIPE, SHAPE, num_classes=num_classes, **(sampling or {})),
        num_classes=num_classes,
        ema_rates=(0.9, 0.99),
        sample_ema="0.9",
    )
    network = network or Tiny(num_classes)
    return diffusion(network, SCHEDULE, prediction.edm(), **(defaults | options))


def batch(rows=16, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(256, size=(rows, *SHAPE), dtype=np.uint8)
    return {"image": images, "label": np.arange(rows, dtype=np.int32) % CLASSES}


def compiled(system):
    """``(state, index, labels=None, scale=1) -> Samples``; a scale in an array is traced."""

    def run(state, index, labels, scale):
        return system.sample(state, jax.random.key(5), Request(index, labels, scale))

    traced = jax.jit(run)
    fixed = jax.jit(run, static_argnums=3)

    def draw(state, index, labels=None, scale=1):
        function = fixed if isinstance(scale, int | float) else traced
        return function(state, jnp.asarray(index), labels, scale)

    return draw


@pytest.fixture(scope="module")
def initial():
    """The state before training of every system here with labels."""
    return jax.jit(make().init)(jax.random.key(0), batch())


@pytest.fixture(scope="module")
def draw():
    """Compiled once for all: the plain system's samples."""
    return compiled(make())


# Training.


def test_training_lowers_the_loss_on_digits():
    source = data.create("digits", split="train")
    schedule = VPLinear()
    system = diffusion(
        MLP(width=64, depth=2, num_classes=10),
        schedule,
        prediction.EPS,
        objective=losses.regression,
        times=losses.stratified_times,
        optimizer=optax.adam(3e-3),
        draw=sampler(schedule, solvers.recipe("ddim", schedule, 2), (8, 8, 1), num_classes=10),
        num_classes=10,
        ema_rates=(0.9,),
        sample_ema="0.9",
    )
    stream = data.batches(source, batch_size=256, seed=0)
    state = system.init(jax.random.key(0), next(stream))
    update, found = jax.jit(system.update), []
    for step in range(60):
        state, metrics = update(state, next(stream), jax.random.key(step))
        found.append(float(metrics["loss"]))
    # The network starts silent: a loss of one, with the error of 256 * 64 squared normals.
    assert abs(found[0] - 1) < 4 * np.sqrt(2 / (256 * 64))
    assert np.mean(found[-5:]) < 0.5
    assert int(state.step) == 60 and metrics.keys() == {"loss", "grad_norm", "ema_distance"}


def test_an_update_is_a_function_of_its_arguments(initial):
    update = jax.jit(make().update)
    one, two, other = (update(initial, batch(), jax.random.key(s))[0].params for s in (1, 1, 2))
    chex.assert_trees_all_equal(one, two)
    assert not np.array_equal(one["Dense_0"]["kernel"], other["Dense_0"]["kernel"])


def test_the_gradient_does_not_depend_on_how_the_batch_is_split(initial):
    rows, key = batch(), jax.random.key(3)
    expected, metrics = jax.jit(make().update)(initial, rows, key)
    in_turn, turns = jax.jit(make(microbatches=4).update)(initial, rows, key)
    shards = jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), rows)
    mapped = jax.pmap(make(axis="rows").update, "rows", in_axes=(None, 0, None))
    together, shared = jax.tree.map(lambda leaf: leaf[0], mapped(initial, shards, key))
    for got, found in ((in_turn, turns), (together, shared)):
        chex.assert_trees_all_close(got.params, expected.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)


class Watched(nn.Module):
    """Tells what it is given: its dropout mask."""

    tell: object

    @nn.compact
    def __call__(self, x, time, labels=None, *, train=False):
        mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones(64))
        jax.debug.callback(lambda mask: self.tell(tuple(np.asarray(mask))), mask)
        return self.param("scale", nn.initializers.ones, ()) * x


@pytest.mark.parametrize("how", ["microbatches", "devices"])
def test_every_part_of_a_batch_has_its_own_dropout_mask(how):
    seen = []
    system = make(Watched(seen.append))
    state = system.init(jax.random.key(0), batch(8))
    jax.effects_barrier()
    seen.clear()
    if how == "microbatches":
        run = jax.jit(make(Watched(seen.append), microbatches=4).update)
        rows = batch(8)
    else:
        system = make(Watched(seen.append), axis="rows")
        run = jax.jit(jax.vmap(system.update, (None, 0, None), axis_name="rows"))
        rows = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), batch(8))
    jax.block_until_ready(run(state, rows, jax.random.key(0)))
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 4


def test_label_dropout_has_its_rate_and_does_not_depend_on_the_split(key):
    n, rate = 20_000, 0.1
    labels = jnp.arange(n) % CLASSES
    dropped = drop_labels(labels, CLASSES, rate, Slots(jnp.arange(n), n), key)
    gone = np.asarray(dropped == CLASSES)
    assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(dropped[~gone], labels[~gone])
    # Independent of the label, and of the neighbour.
    assert stats.chisquare(np.bincount(labels[gone])).pvalue > 1e-3
    assert abs(np.corrcoef(gone[1:], gone[:-1])[0, 1]) < 4 / np.sqrt(n)
    rows = np.array([5, 11, 2])
    part = drop_labels(labels[rows], CLASSES, rate, Slots(rows, n), key)
    np.testing.assert_array_equal(part, dropped[rows])


@pytest.mark.parametrize(("rate", "trained"), [(0.0, [1, 1, 1, 0]), (1.0, [0, 0, 0, 1])])
def test_labels_and_the_null_label_reach_the_network(initial, rate, trained):
    new, _ = jax.jit(make(label_dropout=rate).update)(initial, batch(), jax.random.key(1))
    moved = initial.params["label"]["embedding"] != new.params["label"]["embedding"]
    np.testing.assert_array_equal(moved.any(axis=1), np.array(trained, bool))


def test_an_unconditional_system_needs_no_labels():
    system = make(num_classes=0)
    rows = {"image": batch()["image"]}
    state = jax.jit(system.init)(jax.random.key(0), rows)
    assert "label" not in state.params and not system.conditional
    new, metrics = jax.jit(system.update)(state, rows, jax.random.key(1))
    assert jnp.isfinite(metrics["loss"]) and int(new.step) == 1
    samples = compiled(system)(new, np.arange(2))
    chex.assert_shape(samples.images, (2, *SHAPE))
    assert samples.labels is None and samples.nfe == 4
    with pytest.raises(ValueError, match="guidance needs labels"):
        compiled(system)(new, np.arange(2), scale=2.0)


# Sampling.


def test_sample_i_depends_on_seed_and_i_alone(initial):
    """The same pictures in batches of 1, 3 and 8, on one device and on eight, by jit and pmap."""
    system, index = make(), np.arange(40, 64)

    def pictures(index, seed):
        wanted = Request(index, index % CLASSES, 1.7)
        return system.sample(initial, jax.random.key(seed), wanted).images

    jitted = jax.jit(pictures)

    def drawn(size, place=lambda index: index, run=jitted):
        parts = [run(place(index[i : i + size]), 5) for i in range(0, 24, size)]
        return np.concatenate(parts).reshape(24, *SHAPE)

    whole = drawn(8)
    for size in (1, 3):
        np.testing.assert_allclose(drawn(size), whole, atol=1e-5)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    spread = functools.partial(jax.device_put, device=sharding)
    assert len(jitted(spread(index[:8]), 5).sharding.device_set) == len(jax.devices()) == 8
    np.testing.assert_allclose(drawn(8, spread), whole, atol=1e-5)
    mapped = jax.pmap(pictures, static_broadcasted_argnums=1)
    np.testing.assert_allclose(
        drawn(8, lambda index: index.reshape(8, 1), mapped), whole, atol=1e-5
    )
    backwards = jitted(index[7::-1], 5)
    np.testing.assert_allclose(backwards, whole[7::-1], atol=1e-5)
    # Pictures of one label differ from each other, and from those of another seed.
    assert np.abs(whole[0] - whole[3]).max() > 0.1
    assert np.abs(jitted(index[:8], 6) - whole[:8]).max() > 0.1


@pytest.mark.parametrize(
    ("scale", "nfe"), [(1, 4), (1.0, 4), (0.0, 8), (2, 8), (np.ones(3), 8), (jnp.ones(()), 8)]
)
def test_guidance_costs_two_evaluations_and_none_costs_one(initial, scale, nfe):
    """A scale in an array may be anything, so it is guided."""
    wanted = Request(jnp.arange(3), jnp.arange(3), scale)
    found = []

    def run():
        samples = make().sample(initial, jax.random.key(0), wanted)
        found.append(samples.nfe)
        return samples.images

    assert jax.eval_shape(run).shape == (3, *SHAPE)
    assert found == [nfe]


def test_what_is_drawn_is_what_label_and_scale_ask_for(initial, draw):
    """Four samples that differ in nothing but their label."""
    index, labels = np.zeros(4, int), np.array([0, 1, 2, CLASSES])
    plain = draw(initial, index, labels)
    np.testing.assert_array_equal(plain.labels, labels)
    apart = np.abs(np.asarray(plain.images)[:, None] - np.asarray(plain.images)).max((2, 3, 4))
    assert (apart[~np.eye(4, dtype=bool)] > 1e-3).all()
    # Scale 1 is the label's prediction, 0 that of the null label whatever the label; each sample
    # has its own scale.
    guided = draw(initial, index, labels, jnp.array([1.0, 0.0, 3.0, 3.0])).images
    np.testing.assert_allclose(guided[0], plain.images[0], atol=1e-5)
    np.testing.assert_allclose(guided[1], plain.images[3], atol=1e-5)
    np.testing.assert_allclose(guided[3], plain.images[3], atol=1e-5)
    assert np.abs(guided[2] - plain.images[2]).max() > 1e-3


def test_samples_come_from_the_average_named(initial):
    kept = {
        rate: jax.tree.map(lambda leaf, factor=factor: factor * leaf, initial.params)
        for rate, factor in {"0.9": 0.5, "0.99": 2.0, "": 1.0}.items()
    }
    state = initial.replace(ema={rate: params for rate, params in kept.items() if rate})
    raw = compiled(make(sample_ema=""))
    expected = {
        rate: raw(state.replace(params=params), np.arange(2), np.arange(2)).images
        for rate, params in kept.items()
    }
    for rate in ("0.9", "0.99"):
        found = compiled(make(sample_ema=rate))(state, np.arange(2), np.arange(2)).images
        np.testing.assert_allclose(found, expected[rate], rtol=1e-5)
        assert np.abs(found - expected[""]).max() > 1e-2


def test_an_average_that_is_not_kept(initial):
    with pytest.raises(ValueError, match=r"no parameter average of rate '0.5'.*'0.9', '0.99'"):
        compiled(make(sample_ema="0.5"))(initial, np.arange(1), np.arange(1))


def test_scale_by_time_and_limit_are_applied(initial, draw):
    index, labels = np.zeros(4, int), np.array([0, 1, 2, CLASSES])
    limit = functools.partial(guidance.threshold, schedule=SCHEDULE)
    limited = compiled(make(sampling={"limit": limit}))(initial, index, labels, 30.0)
    assert np.abs(limited.images).max() == 1 and limited.nfe == 8
    # Guidance in an interval that holds no time of the grid is none.
    scale = lambda scale, t: guidance.interval(scale, 1e-9, 1e-8)(t)  # noqa: E731
    outside = compiled(make(sampling={"scale": scale}))(initial, index, labels, 30.0)
    np.testing.assert_allclose(outside.images, draw(initial, index, labels).images, atol=1e-5)


def test_samples_start_from_the_prior_and_its_noise_is_another(key):
    """A solver that only adds noise of its own shows both."""
    still = solvers.one_step(lambda predict, x, span, key: x)
    fresh = solvers.one_step(lambda predict, x, span, key: normal(key, x.shape))
    ts = jnp.array([SCHEDULE.t_max, SCHEDULE.t_min])

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver):
        draw = sampler(SCHEDULE, Recipe(solver, ts, False), (2, 2, 1))
        predict = lambda x, t, labels: Prediction(x, x)  # noqa: E731
        return draw(predict, key, Request(jnp.arange(1000))).images.ravel()

    start, noise = run(still), run(fresh)
    assert stats.kstest(start / SCHEDULE.t_max, "norm").pvalue > 1e-3
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(start, noise)[0, 1]) < 4 / np.sqrt(4000)
    # The start is that of the sample's number, as documented.
    own = jax.random.split(jax.random.fold_in(key, 7))[0]
    np.testing.assert_allclose(
        start.reshape(1000, 2, 2, 1)[7],
        SCHEDULE.t_max * jax.random.normal(own, (2, 2, 1)),
        rtol=1e-5,
    )


def test_samples_of_a_linear_model_have_its_distribution(key):
    """The exact prediction of two Gaussian classes, drawn through the whole of the system."""
    means, std = jnp.array([-0.5, 0.25]), 0.2

    def predict(x, t, labels):
        mean, sigma = expand(means[labels], x), expand(SCHEDULE.sigma(t), x)
        return prediction.from_x0(
            SCHEDULE, x, t, (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
        )

    run = sampler(SCHEDULE, solvers.recipe("heun", SCHEDULE, 61), (2, 1, 1), num_classes=2)
    index = jnp.arange(4000)
    images = jax.jit(lambda: run(predict, key, Request(index, index % 2)).images)()
    for label in (0, 1):
        drawn = np.asarray(images[label::2]).ravel()
        assert stats.kstest(drawn, stats.norm(means[label], std).cdf).pvalue > 1e-3
