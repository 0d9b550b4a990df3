"""Every network beside PyTorch's: forward and training step; the goal is a ratio of 1 or less.

The two sides start from the same weights, on which they must agree before anything is timed. A
training step here is the network's alone: forward, squared error, backward, Adam; train_step.py
times all that training does. PyTorch runs eagerly, and in the layout ``channels_last`` too where
there are convolutions. Ours runs with one device, and with one for each core, over which the rows
are spread (see train_step.py).

With ``--accelerator`` there is no PyTorch: training and sampling of DiT-XL/2 and ADM-64 in
bfloat16, by the product's own programs, in images a second and as a fraction of the peak that the
device could compute; the goal is 50 % for DiT-XL/2.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from side_by_side import (
    OURS,
    ROOT,
    THREADS,
    facts,
    header,
    interleave,
    parser,
    ratio,
    row,
    timing_flags,
)

from diffjax import components, configuration, convert, dry_run, experiment, parallel, sampling
from diffjax.models.dit import DIT_SIZES

LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how long to look at it.

    Attributes:
        network: Arguments of the official constructor.
        channels: Of its input.
        size: Height and width of its input.
        batch: Images at once.
        layouts: PyTorch's.
        repeats: Rounds of measurements.
    """

    network: dict
    channels: int = 3
    size: int = 32
    batch: int = 8
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    repeats: int = 9


CASES = {
    "ddpm": Case(
        dict(
            image_size=32,
            channels=3,
            ch=64,
            ch_mult=(1, 2, 2),
            num_res_blocks=1,
            attn_resolutions=(16,),
            dropout=0.0,
        )
    ),
    "adm": Case(
        dict(
            image_size=32,
            model_channels=64,
            out_channels=6,
            num_res_blocks=1,
            attention_resolutions=(2, 4),
            channel_mult=(1, 2, 2),
            num_head_channels=32,
        )
    ),
    "ncsnpp": Case(
        dict(
            image_size=32,
            nf=64,
            ch_mult=(1, 2, 2),
            num_res_blocks=1,
            attn_resolutions=(16,),
            dropout=0.0,
            fir=True,
            progressive_input="residual",
        )
    ),
    "dit": Case(
        dict(input_size=32, patch_size=2, in_channels=4, hidden_size=256, depth=4, num_heads=4),
        channels=4,
        layouts=("contiguous",),
    ),
    "uvit": Case(
        dict(img_size=32, patch_size=2, in_chans=3, embed_dim=256, depth=4, num_heads=4),
        layouts=("contiguous",),
    ),
    "vae": Case(
        dict(
            block_out_channels=(64, 128),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            sample_size=32,
        )
    ),
}


def calls(name: str, case: Case) -> tuple[int, dict[str, dict[str, Callable[[], object]]]]:
    """The number of parameters; of each kind of call, what to time on each side."""
    import torch_networks  # not needed with --accelerator

    network = torch_networks.perturbed(torch_networks.NETWORKS[name](**case.network))
    module, variables = convert.from_torch(
        name, torch_networks.official_tensors(network), **case.network
    )
    generator = np.random.default_rng(0)
    x = generator.normal(size=(case.batch, case.size, case.size, case.channels))
    x, t = x.astype(np.float32), generator.uniform(0, 999, case.batch).astype(np.float32)
    inputs = (x,) if name == "vae" else (x, t)
    out = np.asarray(jax.jit(module.apply)(variables, *inputs))
    target = generator.normal(size=out.shape).astype(np.float32)

    made = {"forward": {}, "training step": {}}
    for ours, devices in OURS.items():
        mesh = parallel.make_mesh(devices=jax.devices()[:devices])
        weights, rows = place(mesh, variables, (*inputs, target))
        made["forward"][ours] = our_forward(module, weights, rows[:-1])
        made["training step"][ours] = our_step(module, weights, rows)
    for layout in case.layouts:
        theirs = torch_networks.calls(network, layout, x, t, target, LEARNING_RATE)
        made["forward"][layout], made["training step"][layout] = theirs
        error = np.abs(out - theirs[0]().numpy().transpose(0, 2, 3, 1)).max() / np.abs(out).max()
        if not error < 1e-3:
            raise AssertionError(f"{name}, {layout}: the two networks differ by {error:.2g}")
        # Before either side has trained, and from the same weights.
        losses = [float(made["training step"][side]()) for side in (*OURS, layout)]
        if layout == case.layouts[0] and not np.allclose(losses, losses[0], rtol=1e-3):
            raise AssertionError(f"{name}: the losses differ, {losses}")
    return sum(weight.size for weight in jax.tree.leaves(variables["params"])), made


def place(mesh: jax.sharding.Mesh, variables: dict, rows: tuple) -> tuple[dict, tuple]:
    """The weights on every device, the rows spread over them."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(variables, whole), jax.device_put(rows, parallel.batch_sharding(mesh))


def our_forward(module, variables: dict, inputs: tuple) -> Callable[[], object]:
    """The network, compiled."""
    apply = jax.jit(module.apply)
    return lambda: apply(variables, *inputs).block_until_ready()


def our_step(module, variables: dict, rows: tuple) -> Callable[[], object]:
    """A step of Adam, compiled; the state that goes in becomes what comes out.

    The rows are the inputs, and what the network should answer.
    """
    *inputs, target = rows
    optimizer = optax.adam(LEARNING_RATE)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, target, *inputs):
        def loss(params):
            return jnp.mean(jnp.square(module.apply({"params": params}, *inputs) - target))

        value, gradient = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, change), state, value

    params = jax.tree.map(jnp.copy, variables["params"])
    state = optimizer.init(params)

    def step():
        nonlocal params, state
        params, state, value = update(params, state, target, *inputs)
        return jax.block_until_ready((value, params))[0]

    return step


def beside_pytorch(options) -> None:
    """The table of all networks."""
    if options.clock == "cpu":
        # Threads of PyTorch that wait in a loop would be counted as if they worked.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    jax.config.update("jax_num_cpu_devices", THREADS)
    clock = f"{options.clock} clock, median (quartiles)"
    print(f"Time of our network over that of PyTorch's: {clock}\n")
    peers = [f"over PyTorch, {layout}" for layout in Case.layouts]
    print(header(["network", "parameters", "batch", "call", "diffjax", "ms", *peers]))
    for name in options.cases:
        case = CASES[name]
        if options.quick:
            case = dataclasses.replace(case, batch=2, repeats=2)
        size, made = calls(name, case)
        for kind, sides in made.items():
            seconds = 0.0 if options.quick else 1.0
            times = interleave(sides, options.repeats or case.repeats, seconds, options.clock)
            for ours in OURS:
                values = times[ours]
                cells = [
                    name,
                    f"{size:,}",
                    case.batch,
                    kind,
                    ours,
                    f"{1e3 * np.median(values):.1f}",
                ]
                cells += [
                    ratio(values, times[layout]) if layout in times else ""
                    for layout in Case.layouts
                ]
                print(row(cells), flush=True)
    print(f"\n{facts('jaxlib', 'flax', 'torch', 'diffusers')}; {THREADS} threads on both sides")


# Dense multiply-and-add of bfloat16, 1e12 operations a second, by a part of JAX's device kind; of
# the vendors' data sheets. The first that fits counts.
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "TPU v6": 918,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v4": 275,
    "TPU v3": 61.5,  # a JAX device is one of a chip's two cores
    "TPU v2": 22.5,
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What an accelerator is given.

    Attributes:
        network: Name of the network.
        model: Its arguments.
        shape: Of an image, or of the latent of one.
        batch: Images in a training step and drawn at once, for 80 GB.
        calls: Network calls of a draw.
        tiny: Arguments instead, to see that it runs.
    """

    network: str
    model: dict
    shape: tuple[int, int, int]
    batch: int
    tiny: dict
    calls: int = 25


WORKLOADS = {
    "DiT-XL/2": Workload(
        "dit",
        dict(patch_size=2, **DIT_SIZES["XL"], remat=False),
        shape=(32, 32, 4),
        batch=64,
        tiny=dict(width=32, depth=2, num_heads=2),
    ),
    "ADM-64": Workload(
        "adm",
        dict(
            ch=192,
            ch_mult=(1, 2, 3, 4),
            num_res_blocks=3,
            attn_resolutions=(32, 16, 8),
            head_channels=64,
            new_attention_order=True,
            dropout=0.1,
            null_label=False,
            remat=False,
        ),
        shape=(64, 64, 3),
        batch=64,
        tiny=dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(32,)),
    ),
}


def peak(given: float | None) -> float:
    """Operations a second that all devices together could do; not a number if unknown."""
    kind = jax.devices()[0].device_kind
    known = (tera for name, tera in PEAKS.items() if name.lower() in kind.lower())
    tera = given or next(known, math.nan)
    return 1e12 * tera * jax.device_count()


def workload_config(work: Workload, quick: bool) -> ml_collections.ConfigDict:
    """ADM's config at 64x64 with the network and the batch of the workload."""
    config = configuration.load(ROOT / "configs/imagenet64/adm.py:ddim")
    config.network = work.network
    config.model = {**work.model, **(work.tiny if quick else {}), "dtype": "bfloat16"}
    config.data.shape = work.shape
    config.train.batch_size = config.sample.batch_size = work.batch
    config.sample.calls = work.calls
    return config


def programs(built: experiment.Experiment) -> tuple[int, Callable, Callable]:
    """Operations of one image's forward pass; an update and a draw, as training and sampling do."""
    config, classes, mesh = built.config, built.num_classes, parallel.make_mesh()
    batch = config.train.batch_size
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=batch).astype(np.int32)
    pixels = generator.integers(256, size=(batch, *built.shape)).astype(np.uint8)
    placed = parallel.place_batch({"image": pixels, "label": labels}, mesh)
    init = functools.partial(built.system.init, jax.random.key(config.seed))
    shardings = parallel.state_sharding(jax.eval_shape(init, placed), mesh)
    state = jax.jit(init, out_shardings=shardings)(placed)

    network = components.network(config, classes)
    one = [jax.ShapeDtypeStruct((1, *built.shape), jnp.float32)]
    one += [jax.ShapeDtypeStruct((1,), dtype) for dtype in (jnp.float32, jnp.int32)]
    forward = dry_run.flops(jax.make_jaxpr(network.apply)({"params": state.params}, *one).jaxpr)

    run, _ = sampling.compile_draw(built, mesh)
    update = parallel.compile_update(built.system, state, placed, mesh)

    def train():
        nonlocal state
        state, metrics = update(state, placed)
        return metrics["loss"]

    def draw():
        return run(state, jax.random.key(1), np.arange(batch), labels)

    return forward, train, draw


def seconds(call: Callable[[], object], number: int) -> float:
    """A call's, of ``number`` behind one another; the first of all, which compiles, is not one."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    out = [call() for _ in range(number)][-1]
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / number


def on_accelerator(options) -> None:
    """The table of images a second."""
    could = peak(options.peak)
    if options.peak is None and math.isnan(could):
        print("The peak of this device is not known here; give it with --peak.")
    print("Model operations: matrix products and convolutions of the forward pass, a call; three")
    print("times that a training step. Sampling is DDIM without guidance.\n")
    print(header(["network", "batch", "call", "GFLOP an image", "images/s", "of the peak"]))
    for name, work in WORKLOADS.items():
        work = dataclasses.replace(work, batch=options.batch or work.batch)
        if options.quick:
            work = dataclasses.replace(work, batch=2 * jax.device_count(), calls=2)
        built = experiment.build(workload_config(work, options.quick), open_data=False)
        forward, train, draw = programs(built)
        rounds = 2 if options.quick else 20
        kinds = (
            ("training step", train, rounds, 3 * forward),
            (f"draw, {work.calls} calls", draw, max(rounds // 10, 1), work.calls * forward),
        )
        for kind, call, number, each in kinds:
            rate = work.batch / seconds(call, number)
            title = f"{name}, a tiny stand-in" if options.quick else name
            used = "" if math.isnan(could) else f"{rate * each / could:.1%}"
            cells = [title, work.batch, kind, f"{each / 1e9:.1f}", f"{rate:.1f}", used]
            print(row(cells), flush=True)
    print(f"\n{facts('jaxlib', 'flax')}; {jax.device_count()} devices")


def main() -> None:
    flags = parser(__doc__)
    timing_flags(flags, CASES)
    flags.add_argument("--accelerator", action="store_true", help="large networks, no PyTorch")
    flags.add_argument("--batch", type=int, help="with --accelerator: images at once")
    flags.add_argument("--peak", type=float, help="of a device: 1e12 operations a second")
    options = flags.parse_args()
    (on_accelerator if options.accelerator else beside_pytorch)(options)


if __name__ == "__main__":
    main()
