"""Schedules against published and closed-form values."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.schedules import (
    EDM,
    VE,
    Cosine,
    Discrete,
    FlowMatching,
    SubVP,
    VPLinear,
    diffusion_squared,
    drift,
    expand,
    half_log_snr,
)


@pytest.mark.parametrize(
    ("t", "alpha", "sigma", "lam"),
    [
        (0.1, 0.946722, 0.322053, 1.07829),
        (0.5, 0.281183, 0.959654, -1.22757),
        (1.0, 0.00657159, 0.999978, -5.02498),
        (1e-5, 0.9999995, 0.0010005, None),
    ],
)
def test_vp_values(t, alpha, sigma, lam, x64):
    np.testing.assert_allclose(VPLinear().alpha(t), alpha, rtol=1e-5)
    np.testing.assert_allclose(VPLinear().sigma(t), sigma, rtol=1e-5)
    if lam is not None:
        np.testing.assert_allclose(half_log_snr(VPLinear(), t), lam, rtol=1e-5)


def test_vp_lambda_at_the_ends_of_sampling(x64):
    lam = half_log_snr(VPLinear(), jnp.array([1e-3, 1e-4]))
    np.testing.assert_allclose(lam, [4.55771, 5.75151], rtol=1e-5)


def test_sub_vp_and_ve_values(x64):
    t = jnp.array([0.1, 0.5, 1.0])
    np.testing.assert_allclose(SubVP().sigma(t), [0.103718, 0.920936, 0.999957], rtol=1e-5)
    np.testing.assert_allclose(SubVP().alpha(t), VPLinear().alpha(t))
    np.testing.assert_allclose(VE().sigma(t), [0.0234367, 0.707107, 50.0], rtol=1e-5)


def test_closed_form_rates(x64):
    t = np.array([0.01, 0.3, 0.9])
    beta = 0.1 + 19.9 * t
    np.testing.assert_allclose(drift(VPLinear(), t), -beta / 2)
    np.testing.assert_allclose(diffusion_squared(VPLinear(), t), beta)
    remaining = 1 - np.exp(-2 * 0.1 * t - 19.9 * t**2)
    np.testing.assert_allclose(diffusion_squared(SubVP(), t), beta * remaining)
    np.testing.assert_allclose(
        diffusion_squared(VE(), t), 2 * VE().sigma(t) ** 2 * np.log(50 / 0.01)
    )
    np.testing.assert_allclose(drift(VE(), t), 0)
    np.testing.assert_allclose(diffusion_squared(EDM(), t), 2 * t)
    np.testing.assert_allclose(drift(FlowMatching(), t), -1 / (1 - t))


def test_ddpm_chain(x64):
    chain = Discrete.linear(1000, 1e-4, 0.02)
    n = np.array([1, 100, 250, 500, 750, 1000])
    abar = chain.alpha(n / 1000) ** 2
    np.testing.assert_allclose(
        abar, [0.9999, 0.897018, 0.524085, 0.0785872, 0.00335055, 4.03583e-5], rtol=1e-5
    )
    np.testing.assert_allclose(
        half_log_snr(chain, n / 1000),
        [4.6051, 1.08226, 0.04821, -1.23085, -2.84764, -5.0588],
        rtol=1e-4,
    )
    np.testing.assert_allclose(chain.index(n / 1000), n - 1, atol=1e-9)
    assert chain.steps == 1000 and chain.t_min == 1e-3 and chain.t_max == 1


def test_chain_is_linear_in_log_alpha_between_its_nodes(x64):
    chain = Discrete.linear()
    t = np.array([0.4203, 0.0015, 0.9999])
    low, high = np.floor(t * 1000) / 1000, np.ceil(t * 1000) / 1000
    share = (t - low) / (high - low)
    between = (1 - share) * chain.log_alpha(low) + share * chain.log_alpha(high)
    np.testing.assert_allclose(chain.log_alpha(t), between, rtol=1e-12)
    assert chain.alpha(0.0) == 1 and chain.sigma(0.0) == 0


def test_chain_keeps_its_float64_table_in_float32():
    # Summing 1000 logarithms in float32 would lose the first steps' small noise.
    chain = Discrete.linear()
    exact = np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    np.testing.assert_allclose(chain.sigma(jnp.arange(1, 1001) / 1000), exact, rtol=1e-5)


def test_cosine_chain_and_cosine_schedule_agree_until_the_clipped_end(x64):
    t = np.linspace(0.001, 0.98, 980)
    chain = Discrete.cosine(1000)
    nodes = np.round(t * 1000) / 1000
    np.testing.assert_allclose(chain.alpha(nodes), Cosine().alpha(nodes), rtol=1e-9)
    assert chain.betas.max() == 0.999


def test_stable_diffusions_chain(x64):
    chain = Discrete.scaled_linear()
    np.testing.assert_allclose(chain.betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(chain.betas)), np.diff(np.sqrt(chain.betas))[0])
    np.testing.assert_allclose(
        chain.alpha(np.array([0.001, 1])) ** 2, [0.99915, 0.00466], rtol=1e-3
    )


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.0], [0.1, float("nan")]])
def test_bad_betas(betas):
    with pytest.raises(ValueError, match="betas must be a vector of numbers in"):
        Discrete(betas)


def test_expand():
    x = jnp.zeros((4, 2, 3))
    assert expand(jnp.float32(1.0), x).shape == ()
    assert expand(jnp.ones(4), x).shape == (4, 1, 1)
    assert expand(jnp.ones((4, 2, 3)), x).shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"time of shape \(3,\) does not fit x of shape \(4, 2, 3"):
        expand(jnp.ones(3), x)
