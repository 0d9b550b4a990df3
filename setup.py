"""Package metadata of diffjax; tools are set in pyproject.toml, versions in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "diffjax" / "__init__.py").read_text())[1]

# importlib-resources: imported by tensorflow-datasets 4.9.10, which does not declare it.
TFDS = ["tensorflow-datasets>=4.9.10", "array-record>=0.8", "importlib-resources>=6"]
MCMC = ["blackjax>=1.7"]
TEST = [
    *TFDS,
    *MCMC,
    "tensorflow-cpu>=2.20; platform_machine == 'x86_64'",  # only to build the data set of a test
    "pytest>=8",
    "pytest-xdist>=3.6",
    "nbclient>=0.10",
    "ipykernel>=6",
    "scipy>=1.14",
    "tensorboard>=2.18",
]

setup(
    name="diffjax",
    version=VERSION,
    description="A JAX/Flax functional toolkit for diffusion models.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The diffjax authors",
    keywords=["diffusion models", "score-based generative models", "JAX", "Flax", "DPM-Solver"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["diffjax", "diffjax.*"]),
    package_data={"diffjax": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "chex>=0.1.90",
        "grain>=0.2.12",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "diffrax>=0.7",
        "einops>=0.8",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "pillow>=11",
        "scikit-learn>=1.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "tfds": TFDS,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.12", "build"],
    },
)
