"""Fixtures shared by all tests."""

import os

# Set before JAX starts its backend: eight host devices, so that sharding is tested everywhere, and
# quick compilation, which is most of what the tests do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)

import jax
import pytest


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled, and only this test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A typed random key."""
    return jax.random.key(0)
