"""A training step beside PyTorch's: the same network on the same batch; the goal is a ratio <= 1.

Both do what training does: bytes to floats, a time and noise for every image, forward, loss on the
noise, backward, clipping, Adam and the average of the parameters. Ours is the product's own update.
PyTorch runs eagerly, in the memory layout ``channels_last`` too where there are convolutions, and
compiled. The weights are carried over first, and the two networks must agree on them.

XLA runs many operations on one core, small convolutions among them. With a device for each core
(``JAX_NUM_CPU_DEVICES=2 python main.py ...``) the rows of a batch are spread over the cores as they
are over accelerators; ours is measured with one device and so.
"""

import copy
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
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
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_networks import NETWORKS, official_tensors, perturbed

from diffjax import components, configuration, convert, experiment, parallel


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to train, and how long to look at it.

    Attributes:
        config: Config file, below ``configs/``.
        batch: Images in a step.
        network: Name of the network.
        model: Its arguments instead of the config's.
        repeats: Rounds of measurements.
        variants: PyTorch's, of which all are tried unless it cannot do one.
    """

    config: str
    batch: int
    network: str = "unet"
    model: dict | None = None
    repeats: int = 15
    variants: tuple[str, ...] = ("eager", "channels_last", "compiled")


CASES = {
    "unet 8x8": Case("digits/ddpm.py", batch=128),
    "dit 8x8": Case(
        "digits/ddpm.py",
        batch=128,
        network="dit",
        model=dict(patch_size=2, width=128, depth=4, num_heads=4),
    ),
    "dit S/4 32x32": Case(
        "cifar10/ddpm.py",
        batch=16,
        network="dit",
        model=dict(patch_size=4, width=384, depth=12, num_heads=6),
        repeats=7,
    ),
    # The compiler of PyTorch 2.13 fails on this network.
    "ddpm cifar10": Case(
        "cifar10/ddpm.py", batch=4, repeats=5, variants=("eager", "channels_last")
    ),
}


def peer(case: Case, built: experiment.Experiment) -> tuple[nn.Module, dict]:
    """PyTorch's network, and its weights as ours, which must then compute the same."""
    model, (size, _, channels) = built.config.model.to_dict(), built.shape
    if case.network == "unet":
        family, arguments = "ddpm", dict(image_size=size, channels=channels, **model)
        arguments.pop("dtype")
    else:
        family = "dit"
        arguments = dict(
            input_size=size,
            patch_size=model["patch_size"],
            in_channels=channels,
            hidden_size=model["width"],
            depth=model["depth"],
            num_heads=model["num_heads"],
        )
    network = perturbed(NETWORKS[family](**arguments))
    _, variables = convert.from_torch(family, official_tensors(network), **arguments)
    generator = np.random.default_rng(0)
    x, t = generator.normal(size=(2, *built.shape)).astype(np.float32), np.array([10.0, 700.0])
    ours = components.network(built.config, 0).apply(variables, x, t.astype(np.float32))
    with torch.no_grad():
        theirs = network.eval()(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t).float())
    network.train()
    error = np.abs(ours - theirs.numpy().transpose(0, 2, 3, 1)).max() / np.abs(ours).max()
    if not error < 1e-4:
        raise AssertionError(f"{case}: the two networks differ by {error:.2g}")
    return network, variables["params"]


def our_step(
    built: experiment.Experiment, params: dict, images: np.ndarray, devices: int
) -> Callable[[], object]:
    """The product's update, compiled as the training loop compiles it."""
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    host = {"image": images, "label": np.zeros(len(images), np.int32)}
    state = built.system.init(jax.random.key(0), host)
    average = {rate: jax.tree.map(jnp.copy, params) for rate in state.ema}
    state = state.replace(params=jax.tree.map(jnp.copy, params), ema=average)
    state = jax.device_put(state, parallel.state_sharding(state, mesh))
    update = parallel.compile_update(built.system, state, parallel.place_batch(host, mesh), mesh)

    def step():
        nonlocal state
        state, metrics = update(state, parallel.place_batch(host, mesh))
        return jax.block_until_ready((state.params, metrics["loss"]))

    return step


def their_step(
    built: experiment.Experiment, network: nn.Module, images: np.ndarray, variant: str
) -> Callable[[], object]:
    """The same in PyTorch, on a copy of the network."""
    config, schedule = built.config, built.schedule
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    network = copy.deepcopy(network).to(memory_format=layout)
    betas = config.optimizer.options.b1, config.optimizer.options.b2
    optimizer = torch.optim.Adam(
        network.parameters(), config.optimizer.learning_rate, betas, fused=True
    )
    rate = config.optimizer.ema_rates[-1]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(rate))
    forward = torch.compile(network) if variant == "compiled" else network
    t_all = np.arange(1, schedule.steps + 1) / schedule.steps
    alphas, sigmas = (
        torch.tensor(np.asarray(scale(t_all)), dtype=torch.float32)[:, None, None, None]
        for scale in (schedule.alpha, schedule.sigma)
    )

    def step():
        x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        x0 = x0.contiguous(memory_format=layout)
        t = torch.randint(schedule.steps, (len(x0),))
        noise = torch.randn_like(x0)
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(forward(alphas[t] * x0 + sigmas[t] * noise, t.float()), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        average.update_parameters(network)
        return loss.item()

    return step


def steps(case: Case) -> tuple[int, dict[str, Callable[[], object]]]:
    """The number of parameters, and a step of each side, all from the same weights."""
    config = configuration.load(ROOT / "configs" / case.config)
    config.network = case.network
    if case.model:
        config.model = case.model
    built = experiment.build(config, open_data=False)
    images = np.random.default_rng(0).integers(256, size=(case.batch, *built.shape))
    images = images.astype(np.uint8)
    network, params = peer(case, built)
    made = {name: our_step(built, params, images, count) for name, count in OURS.items()}
    for variant in case.variants:
        made[variant] = their_step(built, network, images, variant)
    return sum(weight.numel() for weight in network.parameters()), made


def main() -> None:
    flags = parser(__doc__)
    timing_flags(flags, CASES)
    options = flags.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    jax.config.update("jax_num_cpu_devices", THREADS)
    if options.quick:
        options.cases = [name for name in options.cases if name.endswith(" 8x8")]
    clock = f"{options.clock} clock, median (quartiles)"
    print(f"Time of our training step over that of PyTorch's: {clock}\n")
    peers = [f"over PyTorch, {variant}" for variant in Case.variants]
    print(header(["network", "parameters", "batch", "diffjax", "ms", *peers]))
    for name in options.cases:
        case = CASES[name]
        if options.quick:
            case = dataclasses.replace(case, batch=8, repeats=3)
        size, made = steps(case)
        seconds = 0.0 if options.quick else 1.0
        times = interleave(made, options.repeats or case.repeats, seconds, options.clock)
        for ours in OURS:
            values = times[ours]
            cells = [name, f"{size:,}", case.batch, ours, f"{1e3 * np.median(values):.1f}"]
            cells += [
                ratio(values, times[variant]) if variant in times else "fails"
                for variant in Case.variants
            ]
            print(row(cells), flush=True)
    print(f"\n{facts('jaxlib', 'flax', 'torch', 'diffusers')}; {THREADS} threads on both sides")


if __name__ == "__main__":
    main()
