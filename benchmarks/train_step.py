"""A training step beside PyTorch's: the same network on the same batch; the goal is a ratio <= 1.

Both do what training does: bytes to floats, a time and noise for every image, forward, loss on the
noise, backward, clipping, Adam and the average of the parameters. Ours is the product's own update.
PyTorch's U-Net is ``UNet2DModel`` of diffusers; its transformer is written out below. PyTorch runs
eagerly, in the memory layout ``channels_last`` too where there are convolutions, and compiled. The
weights are carried over first, and the two networks must agree on them.
"""

import copy
import dataclasses
import re
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import (
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

from diffjax import components, configuration, convert, experiment, parallel
from diffjax.models.embeddings import grid_positions


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

# Names of diffusers' U-Net, made those that the converter knows, applied in this order.
NAMES = (
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.block.\3"),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.\2.attn.\3"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"^up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"^mid_block\.resnets\.0", "mid.block_1"),
    (r"^mid_block\.resnets\.1", "mid.block_2"),
    (r"^mid_block\.attentions\.0", "mid.attn_1"),
    (r"^time_embedding\.linear_1", "temb.dense.0"),
    (r"^time_embedding\.linear_2", "temb.dense.1"),
    (r"^conv_norm_out", "norm_out"),
    (r"time_emb_proj", "temb_proj"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_(q|k|v)\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)


def unet(model: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> nn.Module:
    """Diffusers' U-Net with the arguments of ours."""
    sizes = [shape[0] >> level for level in range(len(model.ch_mult))]
    kinds = ["Attn" if size in model.attn_resolutions else "" for size in sizes]
    return diffusers.UNet2DModel(
        sample_size=shape[0],
        in_channels=shape[2],
        out_channels=shape[2],
        layers_per_block=model.num_res_blocks,
        block_out_channels=[model.ch * mult for mult in model.ch_mult],
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=model.get("num_groups", 32),
        dropout=model.dropout,
    )


class DiT(nn.Module):
    """The diffusion transformer, its parameters named as its authors name them."""

    def __init__(self, size: int, channels: int, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        self.patch, self.width = patch, width
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, patch)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_layer.linear = nn.Linear(width, patch**2 * channels)
        grid = size // patch
        self.register_buffer("pos_embed", torch.tensor(grid_positions(grid, grid, width))[None])
        frequencies = 10_000.0 ** (-torch.arange(128) / 128)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x, t):
        """Maps images ``(batch, channels, height, width)`` and indices ``(batch,)``."""
        batch, channels, height, width = x.shape
        angles = t[:, None] * self.frequencies
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], -1))
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        h = self.final_layer.linear(modulate(h, shift, scale))
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        h = h.view(batch, rows, columns, p, p, channels).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(x.shape)


class Block(nn.Module):
    """Attention and MLP under adaptive normalisation."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width)
        self.attn.proj = nn.Linear(width, width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        """Maps tokens ``(batch, tokens, width)``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(
            6, -1
        )
        qkv = self.attn.qkv(modulate(x, shift1, scale1))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.attn.proj(attended)
        h = F.gelu(self.mlp.fc1(modulate(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.mlp.fc2(h)


def modulate(x, shift, scale):
    """Normalises tokens, then scales and shifts them."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def peer(case: Case, built: experiment.Experiment) -> nn.Module:
    """PyTorch's network, with weights none of which is zero."""
    model, shape = built.config.model, built.shape
    if case.network == "unet":
        network = unet(model, shape)
    else:
        network = DiT(
            shape[0], shape[2], model.patch_size, model.width, model.depth, model.num_heads
        )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return network


def carried_over(case: Case, built: experiment.Experiment, network: nn.Module) -> dict:
    """PyTorch's weights as parameters of our network, which must then compute the same."""
    model, (size, _, channels) = built.config.model, built.shape
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    if case.network == "unet":
        arguments = model.copy_and_resolve_references().to_dict()
        arguments.pop("dtype")
        official = {_official(name, len(model.ch_mult)): value for name, value in tensors.items()}
        # Dense layers of diffusers' attention are convolutions of 1x1 in the authors' network.
        for name, value in official.items():
            if ".attn" in name and value.ndim == 2:
                official[name] = value[..., None, None]
        variables = convert.from_torch(
            "ddpm", official, image_size=size, channels=channels, **arguments
        )
    else:
        variables = convert.from_torch(
            "dit",
            tensors,
            input_size=size,
            patch_size=model.patch_size,
            in_channels=channels,
            hidden_size=model.width,
            depth=model.depth,
            num_heads=model.num_heads,
            num_classes=0,
            learn_sigma=False,
        )
    generator = np.random.default_rng(0)
    x, t = generator.normal(size=(2, *built.shape)).astype(np.float32), np.array([10.0, 700.0])
    ours = components.network(built.config, 0).apply(variables, x, t.astype(np.float32))
    with torch.no_grad():
        theirs = call(network.eval(), torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t))
    network.train()
    error = np.abs(ours - theirs.numpy().transpose(0, 2, 3, 1)).max() / np.abs(ours).max()
    if not error < 1e-4:
        raise AssertionError(f"{case}: the two networks differ by {error:.2g}")
    return variables["params"]


def _official(name: str, levels: int) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    # Diffusers counts the levels on the way up from the lowest.
    return re.sub(r"^up\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


def call(network: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The output of either network of PyTorch."""
    out = network(x, t.float())
    return out if isinstance(out, torch.Tensor) else out.sample


def our_step(
    built: experiment.Experiment, params: dict, images: np.ndarray
) -> Callable[[], object]:
    """The product's update, compiled as the training loop compiles it."""
    mesh = parallel.make_mesh()
    host = {"image": images, "label": np.zeros(len(images), np.int32)}
    state = built.system.init(jax.random.key(0), host)
    average = {rate: jax.tree.map(jnp.copy, params) for rate in state.ema}
    state = state.replace(params=params, ema=average)
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
        loss = F.mse_loss(call(forward, alphas[t] * x0 + sigmas[t] * noise, t), noise)
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
    network = peer(case, built)
    made = {"diffjax": our_step(built, carried_over(case, built, network), images)}
    for variant in case.variants:
        made[variant] = their_step(built, network, images, variant)
    return sum(weight.numel() for weight in network.parameters()), made


def main() -> None:
    flags = parser(__doc__)
    timing_flags(flags, CASES)
    options = flags.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if options.quick:
        options.cases = [name for name in options.cases if name.endswith(" 8x8")]
    clock = f"{options.clock} clock, median (quartiles)"
    print(f"Time of our training step over that of PyTorch's: {clock}\n")
    peers = [f"over PyTorch, {variant}" for variant in Case.variants]
    print(header(["network", "parameters", "batch", "diffjax, ms", *peers]))
    for name in options.cases:
        case = CASES[name]
        if options.quick:
            case = dataclasses.replace(case, batch=8, repeats=3)
        size, made = steps(case)
        seconds = 0.0 if options.quick else 1.0
        times = interleave(made, options.repeats or case.repeats, seconds, options.clock)
        ours = times.pop("diffjax")
        cells = [name, f"{size:,}", case.batch, f"{1e3 * np.median(ours):.1f}"]
        cells += [
            ratio(ours, times[variant]) if variant in times else "fails"
            for variant in Case.variants
        ]
        print(row(cells), flush=True)
    print(f"\n{facts('jaxlib', 'flax', 'torch', 'diffusers')}; {THREADS} threads on both sides")


if __name__ == "__main__":
    main()
