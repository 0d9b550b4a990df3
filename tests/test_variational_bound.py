"""The variational bound of a chain, against the published implementation and closed forms."""

import importlib
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, guidance, likelihood, losses, prediction, schedules, solvers
from diffjax.schedules import Discrete
from diffjax.solvers import solve, timesteps

# float64 figures of openai/guided-diffusion with the toy network below.
FILE = pathlib.Path(__file__).parent / "data/reference/gaussian_diffusion/openai.npz"
REFERENCE = dict(np.load(FILE))
CHAINS = {"linear": Discrete.linear(1000), "cosine": Discrete.cosine(1000)}

each_chain = pytest.mark.parametrize("name", CHAINS)


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def draw(seed):
    """The published run's noise, drawn in its layout."""
    return nhwc(np.random.RandomState(seed).standard_normal((2, 3, 4, 4)))


def toy(x, t):
    t = t[:, None, None, None]
    scale = jnp.sqrt(jnp.clip(t / 1000, 0.001, 1))
    return jnp.concatenate([0.9 * x * scale + 0.1 * jnp.sin(x + t / 100), jnp.cos(x + t / 50)], -1)


def toy_predict(schedule):
    parametrization = prediction.learned_range(prediction.EPS)
    return prediction.network_predict(toy, schedule, parametrization)


def module(name):
    """A file of the solvers, whose name may be that of its function as well."""
    return importlib.import_module(f"diffjax.solvers.{name}")


# The chain.


@each_chain
def test_published_coefficients(name, x64):
    schedule = CHAINS[name]
    chain = likelihood.chain(schedule)
    figures = {
        "betas": chain.over.large_variance,
        "posterior_variance": chain.over.small_variance,
        "posterior_log_variance_clipped": chain.log_small,
        "posterior_mean_coef1": chain.x0_weight,
        "posterior_mean_coef2": chain.x_weight,
    }
    for key, value in figures.items():
        np.testing.assert_allclose(value, REFERENCE[f"{name}/{key}"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(schedule.betas, REFERENCE[f"{name}/betas"], rtol=1e-12)


@each_chain
@pytest.mark.parametrize("sections", ["ddim20", "25", "10,15,20", "250"])
def test_published_respacing(name, sections, x64):
    schedule = CHAINS[name]
    ts = timesteps.respaced(schedule, sections)
    chain = likelihood.chain(schedule, jnp.append(ts, 0))
    expected = REFERENCE[f"{name}/{sections}/timesteps"]
    np.testing.assert_allclose(schedule.index(chain.t), expected, atol=1e-9)
    betas = REFERENCE[f"{name}/{sections}/betas"]
    np.testing.assert_allclose(chain.over.large_variance, betas, rtol=1e-6)


@each_chain
@pytest.mark.parametrize("sections", ["ddim20", "25"])
@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("kind", ["ancestral", "ddim", "ddim_eta0.7"])
def test_published_chains(name, sections, clip, kind, x64, monkeypatch):
    schedule, expected = CHAINS[name], REFERENCE[f"{name}/{sections}/{kind}_clip{clip}"]
    predict = toy_predict(schedule)
    if clip:
        predict = guidance.threshold(predict, schedule)
    solver = {
        "ancestral": solvers.ancestral(schedule, "learned"),
        "ddim": solvers.ddim(schedule),
        "ddim_eta0.7": solvers.ddim(schedule, 0.7),
    }[kind]
    ts = jnp.append(timesteps.respaced(schedule, sections), 0)
    noises = jnp.stack([draw(123 + k) for k in range(len(ts) - 1)])
    # The published draws in place of ours: the k-th step's key is k.
    monkeypatch.setattr(module("base"), "fold_in", lambda key, index: index)
    for name in ("ancestral", "ddim"):
        monkeypatch.setattr(module(name), "normal", lambda k, *_: noises[k])
    got = solve(solver, predict, nhwc(REFERENCE["x_T"]), ts, jax.random.key(0)).x
    np.testing.assert_allclose(got, nhwc(expected), rtol=1e-6, atol=1e-6)


# The bound.


@each_chain
def test_published_bound(name, x64, monkeypatch):
    schedule = CHAINS[name]
    # Drawn from the noisiest step on.
    noises = jnp.stack([draw(123 + 999 - k) for k in range(1000)])
    monkeypatch.setattr(likelihood, "fold_in", lambda key, k: k)
    monkeypatch.setattr(likelihood, "normal", lambda k, *_: noises[k])
    predict = guidance.threshold(toy_predict(schedule), schedule)
    bound = jax.jit(
        lambda x0: likelihood.variational_bound(
            schedule, predict, x0, jax.random.key(0), variance="learned"
        )
    )(nhwc(REFERENCE["x0"]))
    figures = {
        "total_bpd": bound.total,
        "vb": bound.terms[:, ::-1],
        "xstart_mse": bound.x0_error[:, ::-1],
        "mse": bound.eps_error[:, ::-1],
    }
    for key, value in figures.items():
        np.testing.assert_allclose(value, REFERENCE[f"{name}/bpd/{key}"], rtol=1e-6, atol=1e-6)
    # Ours is to N(0, sigma_T^2), of which the published N(0, 1) differs by 1 - sigma_T^2 = 4e-5.
    prior = REFERENCE[f"{name}/bpd/prior_bpd"]
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-4, atol=1e-9)


@each_chain
def test_published_losses(name, x64):
    schedule, x0 = CHAINS[name], nhwc(REFERENCE["x0"])
    noise, t = draw(5), (jnp.array([0, 640]) + 1) / 1000
    predict = toy_predict(schedule)
    hybrid = losses.hybrid(predict, schedule, x0, t, noise)
    expected = {
        kind: REFERENCE[f"{name}/loss/rescaled_mse/{kind}"] for kind in ("vb", "mse", "loss")
    }
    np.testing.assert_allclose(hybrid, expected["loss"], rtol=1e-6)
    simple = losses.regression(predict, schedule, x0, t, noise)
    np.testing.assert_allclose(simple, expected["mse"], rtol=1e-6)
    np.testing.assert_allclose(hybrid - simple, expected["vb"], rtol=1e-6)
    bound = losses.variational(predict, schedule, x0, t, noise, variance="learned")
    np.testing.assert_allclose(bound, REFERENCE[f"{name}/loss/rescaled_kl/loss"], rtol=1e-6)


def test_the_hybrid_loss_trains_the_mean_by_regression_alone():
    schedule, x0 = Discrete.linear(100), jnp.full((2, 4), 0.3)
    noise, t = jnp.ones_like(x0), jnp.array([0.01, 0.5])

    def loss(eps, w, weight):
        def predict(x, t):
            return prediction.from_eps(schedule, x, t, eps)._replace(variance=w)

        return losses.hybrid(predict, schedule, x0, t, noise, weight=weight).sum()

    eps, w = jnp.full_like(x0, 0.5), jnp.full_like(x0, 0.5)
    with_bound = jax.grad(loss, argnums=(0, 1))(eps, w, 1e-3)
    without = jax.grad(loss, argnums=(0, 1))(eps, w, 0.0)
    chex.assert_trees_all_equal(with_bound[0], without[0])
    assert jnp.abs(with_bound[1]).min() > 0 and not without[1].any()


def knowing(x0, variance=None):
    """Predicts the data themselves."""

    def predict(schedule):
        def inner(x, t):
            known = prediction.from_x0(schedule, x, t, jnp.broadcast_to(x0, x.shape))
            return known._replace(variance=variance)

        return inner

    return predict


def test_what_perfect_knowledge_costs(x64):
    """DDPM's chain: 1.3054 bits for the decoder, 0.4864 more for the large variances."""
    schedule, x0 = CHAINS["linear"], jnp.full((1, 4), 128 / 127.5 - 1)
    predict, costs = knowing(x0)(schedule), {}
    for variance in ("small", "large"):
        bound = likelihood.variational_bound(
            schedule, predict, x0, jax.random.key(0), variance=variance
        )
        np.testing.assert_allclose(bound.terms[0, 0], 1.3054, atol=5e-4)
        costs[variance] = float(bound.terms[0, 1:].sum())
    np.testing.assert_allclose(costs["small"], 0, atol=1e-12)
    np.testing.assert_allclose(costs["large"], 0.4864, atol=5e-5)


def test_prior_costs(x64):
    schedule = CHAINS["linear"]
    ts = jnp.array([1.0, 0.5, 0.0])
    for x0, bits in ((1.0, 2.9113e-5), (0.5, 7.28e-6), (0.0, 0.0)):
        x = jnp.full((1, 4), x0)
        bound = likelihood.variational_bound(
            schedule, knowing(x)(schedule), x, jax.random.key(0), ts
        )
        np.testing.assert_allclose(bound.prior, bits, atol=2e-9)


def test_fixed_variances_are_the_ends_of_the_learned(x64):
    """But for the decoder, where both fixed ones are beta tilde of the next step."""
    schedule, x0 = Discrete.cosine(50), jnp.full((1, 4), 0.2)
    both = []
    for w, name in ((0.0, "small"), (1.0, "large")):
        predict = knowing(jnp.full((1, 4), 0.1), jnp.full((1, 4), w))(schedule)
        learned, fixed = (
            likelihood.variational_bound(schedule, predict, x0, jax.random.key(0), variance=v).terms
            for v in ("learned", name)
        )
        np.testing.assert_allclose(learned[:, 1:], fixed[:, 1:], rtol=1e-12)
        both.append((learned[0, 0], fixed[0, 0]))
    assert both[0][0] == both[0][1] == both[1][1] != both[1][0]


@pytest.mark.parametrize(
    ("s2", "rates"),
    [(1.0, (1.63977, 0.53561, 0.05904)), (0.25, (0.83397, 0.17542, 0.01522))],
)
def test_the_optimal_code_lies_on_shannons_curve(s2, rates):
    """Gaussian data and variances: the rate at step n is log2(s^2 / D_n) / 2."""
    schedule, std = CHAINS["linear"], np.sqrt(s2)
    chain = likelihood.chain(schedule)
    alpha, sigma = chain.over.alpha, chain.over.sigma
    error = s2 * sigma**2 / (alpha**2 * s2 + sigma**2)
    best = jnp.log(jnp.exp(chain.log_small) + chain.x0_weight**2 * error)
    places = (best - chain.log_small) / (chain.log_large - chain.log_small)
    data = analytic.Mixture(np.zeros((1, 20_000)), std)

    def predict(x, t):
        k = jnp.round(1000 * t).astype(int) - 1
        exact = data.predict(schedule)(x, t)
        return exact._replace(variance=jnp.broadcast_to(places[k], x.shape))

    x0 = std * jax.random.normal(jax.random.key(0), (1, 20_000))
    bound = jax.jit(
        lambda x0: likelihood.variational_bound(
            schedule, predict, x0, jax.random.key(1), variance="learned"
        )
    )(x0)
    for n, rate in zip((100, 250, 500), rates, strict=True):
        np.testing.assert_allclose(bound.prior + bound.terms[:, n:].sum(1), rate, rtol=0.025)


def test_float32_holds():
    """Terms of every step, with the same noise."""
    schedule, data = CHAINS["linear"], analytic.Mixture(np.zeros((1, 64)), 0.5)
    values = np.round(np.linspace(-1, 1, 64) * 127.5 + 127.5)[None] / 127.5 - 1
    noises = np.random.default_rng(0).standard_normal((1000, 1, 64))
    terms = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            chain, x0 = likelihood.chain(schedule), jnp.asarray(values, dtype)

            def term(k, noise, chain=chain, x0=x0):
                x = schedules.perturb(schedule, x0, chain.t[k], noise)
                predicted = data.predict(schedule)(x, chain.t[k])
                return likelihood.bound_term(chain, predicted, x0, k)[0]

            mapped = jax.jit(jax.vmap(term))
            terms[dtype] = np.asarray(mapped(jnp.arange(1000), jnp.asarray(noises, dtype)))
    assert terms[np.float32].dtype == np.float32
    np.testing.assert_allclose(terms[np.float32], terms[np.float64], rtol=1e-3)
    np.testing.assert_allclose(terms[np.float32].sum(), terms[np.float64].sum(), rtol=1e-5)
