"""The package as a whole: what importing it costs, who imports whom, what it ships."""

import ast
import pathlib
import subprocess
import sys

import pytest

import diffjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "diffjax"

# From the bottom up. A module may import from its own layer and from those before it.
LAYERS = [
    {"typing", "options", "process"},
    {"augmentation", "random"},
    {"schedules"},
    {"prediction"},
    {"analytic", "guidance", "likelihood", "losses", "solvers", "state"},
    {"mcmc"},
    {"systems"},
    {
        "bits",
        "chains",
        "components",
        "configuration",
        "experiment",
        "latents",
        "optimizers",
        "parallel",
        "upsampling",
        "workdir",
    },
    {
        "checkpoint",
        "conversion",
        "dry_run",
        "encoding",
        "evaluation",
        "fitting",
        "inception_features",
        "inception_scores",
        "logging",
        "reference",
        "sampling",
        "serving",
        "train",
    },
    {"demo"},
]
# These know nothing of diffusion: they import each other at most as said here.
ALONE = {
    "convert": {"convert", "models", "typing"},
    "data": {"data", "options", "typing"},
    "metrics": {"metrics", "models", "typing"},
    "models": {"models", "typing"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Parts of diffjax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("diffjax.")}
    return {
        name for name in found if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()
    }


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_go_downwards(path):
    own = part(path)
    if own == "__init__":
        return
    if own in ALONE:
        allowed = ALONE[own]
    else:
        level = next(i for i, layer in enumerate(LAYERS) if own in layer)
        allowed = set().union(*LAYERS[: level + 1])
        # Systems read images as numbers; what builds and runs experiments may use everything.
        allowed |= {"data"} if own == "systems" else set(ALONE) if level >= 7 else set()
    assert imported(path) <= allowed, f"{own} must not import {imported(path) - allowed}"


def test_importing_the_library_is_light():
    """Only JAX and NumPy: no networks, data, plots, TensorFlow or PyTorch."""
    heavy = [
        "blackjax",
        "diffrax",
        "flax",
        "grain",
        "matplotlib",
        "optax",
        "orbax",
        "sklearn",
        "torch",
    ]
    heavy += ["tensorflow", "tensorflow_datasets"]
    script = f"import sys, diffjax; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"


def test_neither_tensorflow_nor_torch_to_train():
    script = (
        "import sys, diffjax.train, diffjax.evaluation, diffjax.data;"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"


def test_ships_its_types_and_public_names():
    assert (PACKAGE / "py.typed").exists()
    for name in diffjax.__all__:
        assert getattr(diffjax, name) is not None
    assert diffjax.__version__.count(".") == 2


def test_the_readme_runs_word_for_word():
    readme = (ROOT / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 25
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("20 1.01") and float(second) < 0.05
