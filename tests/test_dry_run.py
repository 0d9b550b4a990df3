"""What an experiment costs, against closed forms, XLA and the experiment itself."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from diffjax import configuration, dry_run
from diffjax.experiment import abstract_batch, build

ROOT = pathlib.Path(__file__).parent.parent


def make(*overrides, variants="quick"):
    config = configuration.load(f"{ROOT}/tests/data/digits.py:{variants}")
    arguments = [f"--config.{override}" for override in ("train.batch_size=16", *overrides)]
    return build(configuration.override(config, arguments))


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return dry_run.flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def convolve(x, kernel, **options):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, **options
    )


def layers(x, w):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]


CLOSED_FORMS = {
    "product": (lambda a, b: a @ b, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
    "batched product": (jnp.matmul, [(4, 3, 5), (4, 5, 7)], 4 * 2 * 3 * 5 * 7),
    "dot": (jnp.vdot, [(9,), (9,)], 18),
    "elementwise": (jnp.add, [(9,), (9,)], 0),
    "gradient": (
        jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)),
        [(3, 5), (5, 7)],
        3 * 2 * 3 * 5 * 7,
    ),
    "convolution": (convolve, [(2, 8, 8, 3), (3, 3, 3, 16)], 2 * (2 * 8 * 8 * 16) * 9 * 3),
    "grouped convolution": (
        lambda x, k: convolve(x, k, feature_group_count=4),
        [(2, 8, 8, 4), (3, 3, 1, 8)],
        2 * (2 * 8 * 8 * 8) * 9,
    ),
    "scan": (layers, [(3, 5), (6, 5, 5)], 6 * 2 * 3 * 5 * 5),
    "jit in a checkpoint": (
        jax.checkpoint(jax.jit(lambda a, b: a @ b)),
        [(3, 5), (5, 7)],
        2 * 3 * 5 * 7,
    ),
    "dearest branch": (
        lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b),
        [(3, 5), (5, 5)],
        2 * 2 * 3 * 5 * 5,
    ),
}


@pytest.mark.parametrize("function, shapes, expected", CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_flops_in_closed_form(function, shapes, expected):
    assert count(function, *shapes) == expected


def test_flops_agree_with_xla_where_there_is_no_loop():
    """XLA adds elementwise operations, some percent of the whole."""
    experiment = make("model.width=256")
    state = dry_run.state_shapes(experiment)
    batch, key = abstract_batch(experiment, 4096), jax.random.key(0)
    update = experiment.system.update
    ours = dry_run.flops(jax.make_jaxpr(update)(state, batch, key).jaxpr)
    xla = jax.jit(update).lower(state, batch, key).cost_analysis()["flops"]
    assert 0.9 < ours / xla < 1.0


def test_flops_grow_with_the_depth_of_a_scanned_network():
    """Where XLA counts one layer."""
    counts = []
    for depth in (1, 2, 3):
        experiment = make(f"model.depth={depth}", variants="dit,quick")
        counts.append(dry_run._update_flops(experiment, 1))
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0.3 * counts[0]


@pytest.mark.parametrize("change", ["train.microbatches=2", "parallel.mode=pmap"])
def test_flops_do_not_depend_on_how_the_batch_is_worked_off(change):
    assert dry_run._update_flops(make(change), 8) == dry_run._update_flops(make(), 1)


def test_report():
    """Under ``pmap``; ``tests/test_main.py`` makes one of the other mode."""
    experiment = make("parallel.mode=pmap", "model.width=64", "model.depth=1")
    report = dry_run.report(experiment)
    state = jax.eval_shape(experiment.system.init, jax.random.key(0), abstract_batch(experiment, 1))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert re.search(rf"^parameters +{parameters:,}$", report, re.M)
    assert '"steps": 20' in report
    assert re.search(r"^images +8x8x1, 10 classes$", report, re.M)
    assert re.search(r"^devices +8 cpu \(pmap, data=8, fsdp=1\)$", report, re.M)
    kibibytes = 4 * parameters / 1024
    assert f"parameters {kibibytes:.3g} KiB, averages {2 * kibibytes:.3g} KiB" in report
    memory = re.search(r"^memory +([\d.]+) (\w+) a device", report, re.M)
    # At least the state, which is updated in place.
    least = (1 + 2 + 2) * kibibytes
    assert least < float(memory[1]) * {"KiB": 1, "MiB": 1024}[memory[2]] < 4 * least


def test_report_of_a_system_that_is_not_trained():
    report = dry_run.report(make("network=empirical", "data.conditional=false"))
    assert "images    8x8x1, unconditional" in report
    assert "update" not in report


@pytest.mark.parametrize("guidance, nfe", [(1.0, 6), (2.0, 12)])
def test_network_evaluations_count_guidance(guidance, nfe):
    assert dry_run.network_evaluations(make(f"sample.guidance={guidance}")) == nfe


@pytest.mark.parametrize(
    "value, text",
    [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (5 * 2**30, "5 GiB"), (1536, "1.5 KiB")],
)
def test_sizes_in_words(value, text):
    assert dry_run._scaled(value, 1024, "iB") == text
