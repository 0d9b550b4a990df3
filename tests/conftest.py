"""Fixtures shared by all tests."""

import gc
import importlib.metadata
import os
import pathlib

# Set before JAX starts its backend: eight host devices, so that sharding is tested everywhere, and
# quick compilation, which is most of what the tests do: no optimisation, one object file a program,
# and the older emitters, which take a quarter less time than the newer and are gone in jaxlib 0.11.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled, and only this test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A typed random key."""
    return jax.random.key(0)


# Traces leave many objects that live long; Python's habit of looking through them costs a tenth.
gc.set_threshold(50_000, 20, 50)

# A compiled program holds pages of its own, and Linux grants a process 65,530 of such areas: beyond
# them the compiler dies. A worker compiles some thousands of programs, so old ones are let go.
MAPS, MAPS_ALLOWED = pathlib.Path("/proc/self/maps"), 25_000


@pytest.fixture(autouse=True, scope="module")
def _let_go_of_programs():
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MAPS_ALLOWED:
        jax.clear_caches()
        gc.collect()
