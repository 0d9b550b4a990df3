"""Published networks: every name, every count, and outputs computed with the official code.

The weights behind the outputs are not stored; they follow from the tensors' names.
"""

import json
import pathlib
import re
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import convert
from diffjax.metrics.inception import resize_matrix
from diffjax.models import DIT_SIZES

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "reference"
ALL = sorted(
    (family, path.stem)
    for family in convert.FAMILIES
    for path in (REFERENCE / family).glob("*.json")
)
TINY = [(family, name) for family, name in ALL if name.startswith("tiny") and family != "vae"]
# What a checkpoint holds beside the parameters.
BUFFERS = re.compile("sigmas|running_mean|running_var|num_batches_tracked")
# Two networks with the same tensors.
NAMED = {
    name: dict(config=name.replace(".", "/", 1))
    for name in ("ve.celeba_ncsnpp", "vp.cifar10_ncsnpp_continuous")
}


def load(family, name):
    """The official constructor's arguments, the tensors' shapes and the number of parameters."""
    stored = json.loads((REFERENCE / family / f"{name}.json").read_text())
    case = stored["case"]
    if family == "ddpm" and isinstance(case, list):
        fields = ("image_size", "ch", "ch_mult", "num_res_blocks", "attn_resolutions")
        case = dict(zip(fields, case, strict=True))
    elif family == "dit" and isinstance(case, str):
        size, patch, latent = re.fullmatch(r"DiT-(\w+)/(\d), .* latents (\d+)x.*", case).groups()
        width, depth, heads = (DIT_SIZES[size][k] for k in ("width", "depth", "num_heads"))
        case = dict(input_size=int(latent), patch_size=int(patch), hidden_size=width)
        case |= dict(depth=depth, num_heads=heads)
    elif family == "adm" and isinstance(case, str):
        classifier = re.fullmatch(r"classifier (\d+), width (\d+), depth (\d+)", case)
        flags = ("image_size", "classifier_width", "classifier_depth")
        numbers = map(int, classifier.groups() if classifier else ())
        case = dict(zip(flags, numbers, strict=False)) or convert.parse(case.removeprefix("SR "))
    elif family == "inception":
        case = {}
    case.pop("note", None)
    return case, stored["tensors"], stored["parameters"]


def made_by_the_constructor(family, case):
    """Tensors that are neither drawn nor trained."""
    if family == "ncsnpp":
        ends = np.log([case["sigma_max"], case["sigma_min"]])
        return {"sigmas": np.exp(np.linspace(*ends, case["num_scales"]))}
    return {}


def named_weights(shapes, **given):
    """The weights that follow from the names."""
    weights = dict(given)
    for name in shapes.keys() - given.keys():
        shape = shapes[name]
        random = np.random.RandomState(zlib.crc32(name.encode()))
        draw = random.standard_normal(shape)
        if name.endswith("running_var"):
            draw = np.random.RandomState(zlib.crc32(name.encode())).uniform(0.5, 1.5, shape)
        elif name.endswith("pos_embed"):
            draw *= 0.5
        elif name.endswith(".W"):
            draw *= 16
        elif len(shape) > 1:
            draw /= np.sqrt(np.prod(shape[1:]))
        else:
            draw = 0.1 * draw + name.endswith("weight")
        weights[name] = draw.astype(np.float32)
    return weights


@pytest.fixture
def tiny():
    """The smallest case of each kind of layer: arguments and weights."""
    case, shapes, _ = load("dit", "tiny_p4_nolearn")
    with np.load(REFERENCE / "dit" / "tiny_p4_nolearn.npz") as stored:
        return case, named_weights(shapes, pos_embed=stored["pos_embed"])


def without_dropout(module):
    """No tensor tells it."""
    return module.clone(dropout=0.0) if hasattr(module, "dropout") else module


def test_a_dit_without_a_table_of_labels_is_unconditional():
    case = dict(input_size=4, patch_size=2, hidden_size=8, depth=1, num_heads=2, num_classes=0)
    published = convert.published("dit", **case)
    tensors = {
        name: np.zeros(shape)
        for name, shape in (
            ("x_embedder.proj.weight", (8, 4, 2, 2)),
            ("pos_embed", (1, 4, 8)),
            ("blocks.0.attn.proj.bias", (8,)),
            ("final_layer.linear.weight", (32, 8)),
        )
    }
    assert convert.published("dit", **convert.infer("dit", tensors, num_heads=2)).module == (
        published.module
    )


@pytest.mark.parametrize(("family", "name"), ALL)
def test_every_official_name_is_used_once(family, name):
    """And is found from shapes alone where the network is a published one."""
    case, shapes, parameters = load(family, name)
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    given = case if name.startswith("tiny") else NAMED.get(name, {})
    inferred = convert.infer(family, tensors, **given)
    published = convert.published(family, **inferred)
    wanted = convert.published(family, **convert.infer(family, tensors, **case))
    assert without_dropout(published.module) == without_dropout(wanted.module)
    assert published.input_shape == wanted.input_shape
    names = [name for source in convert.check(published, tensors).values() for name in source.names]
    used = {*names} | published.constants.keys()
    assert len(names) == len({*names})
    assert used == {official for official in shapes if not published.ignored(official)}
    trained = [official for official in used if not BUFFERS.search(official)]
    assert sum(tensors[official].size for official in trained) == parameters


def there_and_back(family, tensors, **case):
    """Our module, and its variables, after a check of the way back."""
    module, variables = convert.from_torch(family, tensors, **case)
    back = convert.to_torch(family, variables, **convert.infer(family, tensors, **case))
    assert back.keys() == tensors.keys()
    for official, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[official], err_msg=official)
    return module, variables


@pytest.mark.parametrize(("family", "name"), TINY)
def test_outputs_are_the_official_ones_and_there_is_a_way_back(family, name):
    case, shapes, _ = load(family, name)
    with np.load(REFERENCE / family / f"{name}.npz") as stored:
        stored = dict(stored)
    constants = {key: stored[key] for key in stored.keys() & shapes.keys()}
    constants |= made_by_the_constructor(family, case)
    tensors = named_weights(shapes, **constants)
    module, variables = there_and_back(family, tensors, **case)
    inputs = {key: stored[key] for key in ("x", "low_res", "output") if key in stored}
    inputs = {key: np.moveaxis(array, 1, -1) for key, array in inputs.items()}
    want = inputs.pop("output")
    if getattr(module, "num_classes", 0) and "y" in stored:
        inputs["labels"] = stored["y"].astype(np.int32)
    out = jax.jit(module.apply)(variables, time=stored["t"], **inputs)
    if name == "tiny_ncsnpp_vp":
        # Weights of 16 make its attention all but discontinuous; the first sample is at a jump:
        # changing the parameters by 1e-7 changes it by a third.
        out, want = out[1:], want[1:]
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_autoencoder_is_the_official_one():
    case, shapes, _ = load("vae", "tiny")
    with np.load(REFERENCE / "vae" / "tiny.npz") as stored:
        stored = {key: stored[key].transpose(0, 2, 3, 1) for key in stored}
    module, variables = there_and_back("vae", named_weights(shapes), **case)

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = re.compile(r"to_[qkv]|to_out\.0")
    tensors = {older.sub(lambda new: old[new[0]], n): t for n, t in named_weights(shapes).items()}
    assert len(tensors.keys() - shapes.keys()) == 16
    chex.assert_trees_all_equal(convert.from_torch("vae", tensors, **case)[1], variables)

    @jax.jit
    def run(x, z):
        posterior = module.apply(variables, x, method="encode")
        return posterior.mean, posterior.log_variance, module.apply(variables, z, method="decode")

    for name, got in zip(("mean", "logvar", "decoded"), run(stored["x"], stored["z"]), strict=True):
        tolerance = 2e-5 * np.abs(stored[name]).max()
        np.testing.assert_allclose(got, stored[name], rtol=0, atol=tolerance)


def test_inception_is_the_official_one():
    """Of one image, resized as pytorch-fid does."""
    _, shapes, _ = load("inception", "fid_inception")
    shapes = {name: s for name, s in shapes.items() if not name.endswith("num_batches_tracked")}
    with np.load(REFERENCE / "inception" / "fid_inception.npz") as stored:
        stored = {key: stored[key][:1] for key in stored}
    module, variables = there_and_back("inception", named_weights(shapes))
    x = stored["x"].transpose(0, 2, 3, 1)
    rows, columns = (resize_matrix(size, 299, "pytorch") for size in x.shape[1:3])
    x = 2 * np.einsum("yh,xw,bhwc->byxc", rows, columns, x, optimize=True) - 1
    found = jax.device_get(jax.jit(module.apply)(variables, np.float32(x)))
    want = dict(
        pool=stored["pool_2048"],
        logits=stored["logits_1008"],
        block_means=tuple(stored[f"block{i}_mean"] for i in range(3)),
    )
    for name, value in want.items():
        chex.assert_trees_all_close(getattr(found, name), value, rtol=1e-4, atol=1e-5)
    bias = named_weights({"fc.bias": (1008,)})["fc.bias"]
    np.testing.assert_allclose(found.unbiased_logits, found.logits - bias, atol=1e-6)
    assert found.spatial.shape == (1, 2023)


def test_half_precision_becomes_float32(tiny):
    case, weights = tiny
    halves = {name: weight.astype(np.float16) for name, weight in weights.items()}
    halves["pos_embed"] = weights["pos_embed"]
    _, variables = convert.from_torch("dit", halves, **case)
    params = variables["params"]
    assert params["patch_embed"]["kernel"].dtype == jnp.float32
    stored = weights["final_layer.linear.weight"].astype(np.float16)
    np.testing.assert_array_equal(params["out"]["kernel"], stored.T)


def missing(weights):
    del weights["blocks.1.attn.proj.bias"]


def left_over(weights):
    weights["blocks.2.attn.proj.bias"] = np.zeros(48, np.float32)


def transposed(weights):
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"].T


def trained_table(weights):
    weights["pos_embed"] = weights["pos_embed"] + 1e-3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "lacks .*: blocks.1.attn.proj.bias"),
        (left_over, "more than .*: blocks.2.attn.proj.bias"),
        (transposed, r"blocks.0.mlp.fc1.weight has shape \(48, 192\)"),
        (trained_table, "pos_embed differs"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tiny, spoil, message):
    case, weights = tiny
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        convert.from_torch("dit", weights, **case)


def test_unknown_family():
    with pytest.raises(ValueError, match=r"unknown family 'gan'; there are .*ddpm, dit"):
        convert.network("gan")
