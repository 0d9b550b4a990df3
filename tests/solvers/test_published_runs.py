"""DPM-Solver and UniPC under their published names, against runs of their authors' code."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from diffjax import analytic
from diffjax.schedules import VPLinear
from diffjax.solvers import dpm_solver, unipc

PLACE = pathlib.Path(__file__).parents[1] / "data/reference/dpm_solver"
LU = dict(np.load(PLACE / "lucheng_gmm.npz"))
ZHAO = dict(np.load(PLACE / "unipc_gmm.npz"))
SCHEDULE = VPLinear()


def runs(reference):
    return [name[2:] for name in reference if name.startswith("y|") and name != "y|ref"]


def groups(reference, fields):
    """Names of runs by their first fields: a test each."""
    found = {}
    for name in runs(reference):
        found.setdefault("|".join(name.split("|")[:fields]), []).append(name)
    return found


@pytest.fixture(scope="module", autouse=True)
def same_programs_compile_once(tmp_path_factory):
    """Runs differ in their weights, which are a program's inputs, more than in their programs."""
    changed = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    compilation_cache.reset_cache()
    for name, value in changed.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def mixture(reference):
    parts = (reference[name] for name in ("means", "std", "logw"))
    return analytic.Mixture(*parts).predict(SCHEDULE)


def lu_options(name):
    algorithm, method, order, *rest = name.split("|")
    options = dict(algorithm=algorithm, method=method, order=int(order))
    if method == "adaptive":
        atol, rtol = map(float, rest)
        # The number of steps means nothing here.
        return options | dict(steps=20, atol=atol, rtol=rtol)
    skip, steps, lower, solver_type, denoise = rest
    return options | dict(
        skip=skip,
        steps=int(steps),
        lower_order_final=lower == "lof1",
        solver_type=solver_type,
        denoise_to_zero=denoise == "dz1",
    )


@pytest.mark.parametrize("names", groups(LU, 3).values(), ids=groups(LU, 3))
def test_every_run_of_dpm_solver(names, x64):
    predict, x = mixture(LU), jnp.asarray(LU["x_T"])
    for name in names:
        solution = dpm_solver.sample(predict, SCHEDULE, x, **lu_options(name))
        np.testing.assert_allclose(solution.x, LU[f"y|{name}"], rtol=0, atol=1e-9, err_msg=name)
        assert solution.nfe == LU[f"nfe|{name}"], name


@pytest.mark.parametrize("names", groups(ZHAO, 2).values(), ids=groups(ZHAO, 2))
def test_every_run_of_unipc(names, x64):
    predict, x = mixture(ZHAO), jnp.asarray(ZHAO["x_T"])
    for name in names:
        variant, prediction, order, skip, steps = name.split("|")
        solution = unipc.sample(
            predict,
            SCHEDULE,
            x,
            steps=int(steps),
            order=int(order),
            variant=variant,
            algorithm=f"{prediction}_prediction",
            skip=skip,
        )
        np.testing.assert_allclose(solution.x, ZHAO[f"y|{name}"], rtol=0, atol=1e-9, err_msg=name)
        assert solution.nfe == ZHAO[f"nfe|{name}"], name


def test_all_runs_are_there():
    assert (len(runs(LU)), len(runs(ZHAO))) == (284, 24)


def test_the_exact_answer(x64):
    """The reference itself, by the most exact of the runs and by our own ODE."""
    name = "dpmsolver++|adaptive|3|0.001|0.01"
    assert np.abs(LU[f"y|{name}"] - LU["y|ref"]).max() < 2e-3


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (
            dpm_solver.sample,
            dict(
                steps=None,
                order=2,
                method="multistep",
                algorithm="dpmsolver",
                skip="time_uniform",
                solver_type="dpmsolver",
                lower_order_final=True,
                denoise_to_zero=False,
                t_start=None,
                t_end=None,
                atol=0.0078,
                rtol=0.05,
                key=None,
            ),
        ),
        (
            unipc.sample,
            dict(
                steps=None,
                order=None,
                variant=None,
                algorithm="data_prediction",
                skip=None,
                lower_order_final=True,
                t_start=None,
                t_end=None,
            ),
        ),
    ],
    ids=["dpm_solver", "unipc"],
)
def test_the_signature_is_the_published_one(sample, expected):
    """``None`` stands for no default as well."""
    parameters = inspect.signature(sample).parameters
    assert list(parameters) == ["predict", "schedule", "x", *expected]
    for name, default in expected.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        given = parameters[name].default
        assert (
            given is inspect.Parameter.empty
            if default is None and given is not None
            else (given == default)
        )
