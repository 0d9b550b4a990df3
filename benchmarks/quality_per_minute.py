"""What a minute of training is worth: the digits demo beside diffusers, scored by one judge.

Ours is ``configs/digits/default.py`` through the product's own training and sampling, checkpoints
and previews included. The peer is diffusers as it is meant to be used: ``UNet2DModel`` with class
embedding, ``DDPMScheduler``, AdamW under a warm-up and a cosine, ``EMAModel``; drawn with
``DDIMScheduler``. It trains on the same 898 images for exactly as long as ours took, compilation
included. Both draw without guidance, with the same random labels.
"""

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Callable

import diffusers
import jax
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from side_by_side import ROOT, THREADS, facts, header, parser, row

from diffjax import (
    configuration,
    data,
    evaluation,
    experiment,
    metrics,
    parallel,
    reference,
    sampling,
    train,
)
from diffjax.data import ArraySource
from diffjax.metrics.probe import ClassifierProbe

COLUMNS = {
    "frechet": "Frechet",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "energy": "energy",
    "sliced_wasserstein": "sliced W²",
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """How diffusers is used; the values did best of those tried.

    Attributes:
        widths: Channels of each level of the U-Net.
        layers: Residual blocks a level.
        batch: Images in a step.
        learning_rate: Peak, after a warm-up.
        betas: Noise schedule.
        prediction: What the network predicts.
        ema: Largest decay of the average.
        calls: Network calls a sample; each is scored.
    """

    widths: tuple[int, ...] = (64, 128)
    layers: int = 1
    batch: int = 128
    learning_rate: float = 1e-3
    betas: str = "squaredcos_cap_v2"
    prediction: str = "epsilon"
    ema: float = 0.999
    calls: tuple[int, ...] = (20, 100)


Sampler = Callable[[np.ndarray], np.ndarray]  # labels (n,) -> images uint8 (n, H, W, C)


def train_peer(peer: Peer, source: ArraySource, seconds: float, seed: int) -> tuple[dict, str]:
    """Trains diffusers' network for a time.

    Returns:
        Samplers by name, and what was trained.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    network = diffusers.UNet2DModel(
        sample_size=source.shape[0],
        in_channels=source.shape[2],
        out_channels=source.shape[2],
        layers_per_block=peer.layers,
        block_out_channels=peer.widths,
        down_block_types=["DownBlock2D"] * (len(peer.widths) - 1) + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (len(peer.widths) - 1),
        num_class_embeds=source.num_classes,
        dropout=0.1,
    ).to(memory_format=torch.channels_last)
    chain = dict(beta_schedule=peer.betas, prediction_type=peer.prediction)
    noising = diffusers.DDPMScheduler(**chain)
    optimizer = torch.optim.AdamW(network.parameters(), peer.learning_rate, fused=True)
    average = EMAModel(
        network.parameters(), decay=peer.ema, use_ema_warmup=True, power=0.75, foreach=True
    )
    images = torch.tensor(np.asarray(data.to_float(source.images))).permute(0, 3, 1, 2)
    labels = torch.tensor(source.labels).long()
    order, step = torch.empty(0, dtype=torch.long), 0
    while (elapsed := (time.perf_counter() - began) / seconds) < 1:
        # By time, not by step, so that the rate ends at zero when the time is up.
        rate = min(1, elapsed / 0.05) * 0.5 * (1 + math.cos(math.pi * elapsed))
        optimizer.param_groups[0]["lr"] = peer.learning_rate * rate
        if len(order) < peer.batch:
            order = torch.cat([order, torch.randperm(len(images))])
        rows, order = order[: peer.batch], order[peer.batch :]
        x0, noise = images[rows], torch.randn(len(rows), *images.shape[1:])
        t = torch.randint(noising.config.num_train_timesteps, (len(rows),))
        epsilon = peer.prediction == "epsilon"
        target = noise if epsilon else noising.get_velocity(x0, noise, t)
        x = noising.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        out = network(x, t, class_labels=labels[rows]).sample
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(out, target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())
        step += 1
    average.copy_to(network.parameters())
    network.eval()
    parameters = sum(weight.numel() for weight in network.parameters())

    def sampler(calls: int) -> Sampler:
        scheduler = diffusers.DDIMScheduler(**chain, clip_sample=True)
        scheduler.set_timesteps(calls)

        @torch.no_grad()
        def draw(labels: np.ndarray) -> np.ndarray:
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(len(labels), *images.shape[1:], generator=generator)
            for t in scheduler.timesteps:
                out = network(x, t, class_labels=torch.tensor(labels).long()).sample
                x = scheduler.step(out, t, x).prev_sample
            return np.asarray(data.to_uint8(x.permute(0, 2, 3, 1).numpy()))

        return draw

    samplers = {f"diffusers, DDIM {calls}": sampler(calls) for calls in peer.calls}
    return samplers, f"{parameters:,} parameters, {step} steps"


def train_ours(config, workdir: pathlib.Path, seed: int) -> tuple[dict, str]:
    """Trains the demo, as the command line does.

    Returns:
        A sampler by name, and what was trained.
    """
    config = config.copy_and_resolve_references()
    config.seed = seed
    built = experiment.build(config)
    state = train.train(built, workdir)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def draw(labels: np.ndarray) -> np.ndarray:
        drawn = sampling.draw(built, state, number=len(labels), labels=labels, seed=2**31 + seed)
        return drawn.images

    sample = config.sample
    name = f"diffjax, {sample.solver} {sample.calls}"
    return {name: draw}, f"{parameters:,} parameters, {int(state.step)} steps"


def steps_for(config, seconds: float) -> int:
    """Steps of the demo that take about so long, by compiling and trying some."""
    built = experiment.build(config)
    source = data.in_memory(built.source)
    rows = np.arange(config.train.batch_size) % len(source)
    mesh = parallel.make_mesh()
    batch = parallel.place_batch(
        {"image": source.images[rows], "label": source.labels[rows].astype(np.int32)}, mesh
    )
    began = time.perf_counter()
    state = built.system.init(jax.random.key(0), batch)
    state = jax.device_put(state, parallel.state_sharding(state, mesh))
    update = parallel.compile_update(built.system, state, batch, mesh)
    compiled = time.perf_counter()
    for _ in range(tried := 30):
        state, values = update(state, batch)
    jax.block_until_ready(values)
    ended = time.perf_counter()
    return max(int((seconds - (compiled - began)) / (ended - compiled) * tried), tried)


def scores(
    probe: ClassifierProbe, held_out: ArraySource, images: np.ndarray, shown: float
) -> list[float]:
    """Distances of images to the held-out ones, and the share that shows its label."""
    real, other = (np.asarray(data.to_float(part)) for part in (held_out.images, images))
    values = evaluation.distances(probe, real, other)
    return [*(values[name] for name in COLUMNS), 100 * shown]


def shown(probe: ClassifierProbe, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that the judge takes for what their label says."""
    return metrics.accuracy(probe.logits(np.asarray(data.to_float(images))), labels)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--minutes", type=float, help="of training; as long as the demo if not given"
    )
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--number", type=int, default=1500, help="samples scored")
    for field in dataclasses.fields(Peer):
        kind = dict(type=type(field.default))
        if isinstance(field.default, tuple):
            kind = dict(type=int, nargs="+")
        flags.add_argument(f"--peer_{field.name}", default=field.default, **kind)
    options = flags.parse_args()
    peer = Peer(**{f.name: getattr(options, f"peer_{f.name}") for f in dataclasses.fields(Peer)})
    torch.set_num_threads(THREADS)
    config = configuration.load(f"{ROOT}/configs/digits/default.py{':quick' * options.quick}")
    if options.quick:
        options.seeds, options.number = options.seeds[:1], 200
        peer = dataclasses.replace(peer, calls=(5,))
    elif options.minutes:
        config.train.steps = steps_for(config, 60 * options.minutes)
    train_half, held_out = (
        data.in_memory(data.create("digits", split=split)) for split in ("train", "test")
    )
    asked = np.random.default_rng(0).integers(train_half.num_classes, size=options.number)
    asked = asked.astype(np.int32)
    rows, trained = {}, []
    with tempfile.TemporaryDirectory() as directory:
        probe = reference.probe(train_half, directory)
        accuracy = shown(probe, held_out.images, held_out.labels)
        rows["real: the training half"] = [scores(probe, held_out, train_half.images, accuracy)]
        for seed in options.seeds:
            began = time.perf_counter()
            ours, about_ours = train_ours(config, pathlib.Path(directory, str(seed)), seed)
            seconds = time.perf_counter() - began
            theirs, about_theirs = train_peer(peer, train_half, seconds, seed)
            trained.append(
                f"seed {seed}, {seconds / 60:.2f} minutes each: diffjax {about_ours}; "
                f"diffusers {about_theirs}"
            )
            for name, draw in {**ours, **theirs}.items():
                images = draw(asked)
                accuracy = shown(probe, images, asked)
                rows.setdefault(name, []).append(scores(probe, held_out, images, accuracy))
    print("\n".join(["", *trained]))
    print(f"\nMean (standard deviation) over seeds {options.seeds}, {options.number} samples\n")
    print(header(["distance to the held-out half", *COLUMNS.values(), "shows its label, %"]))
    for name, values in rows.items():
        print(row([name, *map(_summary, zip(*values, strict=True))]))
    print(f"\n{facts('jaxlib', 'flax', 'torch', 'diffusers')}; {THREADS} threads on both sides")


def _summary(values: tuple[float, ...]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(values):.4g} ({np.std(values, ddof=1):.2g})"


if __name__ == "__main__":
    main()
