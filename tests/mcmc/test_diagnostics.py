"""Diagnostics of chains: BlackJAX's figures on chains whose mixing is known, and the picture."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.mcmc import diagnostics


def test_mixing_of_an_autoregression():
    """An effective share of ``(1 - a) / (1 + a)`` for ``x' = a x + noise``; R-hat of shifts."""
    pytest.importorskip("blackjax")
    random, a, steps, chains = np.random.default_rng(0), 0.8, 500, 8
    x = np.zeros((steps, chains))
    x[0] = random.normal(size=chains)
    for index in range(1, steps):
        x[index] = a * x[index - 1] + np.sqrt(1 - a**2) * random.normal(size=chains)
    apart = x + np.linspace(-3, 3, chains)
    moving = x + np.linspace(-3, 3, steps)[:, None]
    found = diagnostics.mixing({"good": x, "apart": apart, "moving": moving})
    assert found["good"].count == steps * chains
    assert found["good"].ess / (steps * chains) == pytest.approx((1 - a) / (1 + a), rel=0.25)
    assert found["good"].rhat < 1.03
    assert found["apart"].rhat > 1.5 and found["apart"].ess < 30
    # Split: chains that agree with each other, but not with themselves.
    assert found["moving"].rhat > 1.5


def test_too_few_values():
    pytest.importorskip("blackjax")
    with pytest.raises(ValueError, match=r"'x' has shape \(3, 2\); give at least 4 steps"):
        diagnostics.mixing({"x": np.zeros((3, 2))})


def test_picture(tmp_path):
    x = np.asarray(jax.random.normal(jax.random.key(0), (5, 8, 8, 1)))
    path = tmp_path / "chain.png"
    diagnostics.picture(3 * x, np.linspace(1, 3, 5), np.clip(x, -1, 1), path)
    assert Image.open(path).size[0] >= 400
