"""Drawing samples: any number, in batches, over all devices, the same picture whatever the split.

Sample ``i`` of a seed depends on the seed and on ``i`` alone: not on the batch it is drawn in, nor
on how many devices share the work, nor on ``pmap`` or ``jit``. Drawn by chains (``config.sampler``
``dmcmc``) it depends on the number of chains too: sample ``i`` is what chain ``i mod chains`` gives
in its round ``i // chains``.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from diffjax import chains, metrics, parallel, upsampling
from diffjax.components import CHAINS, check_classes
from diffjax.data import images
from diffjax.experiment import Experiment
from diffjax.mcmc import Chains, ChainState
from diffjax.state import TrainState
from diffjax.systems import Request
from diffjax.typing import Array, Key

__all__ = ["Drawn", "compile_draw", "draw", "sample"]

Draw = Callable[..., np.ndarray]


class Drawn(NamedTuple):
    """Samples on the host.

    Attributes:
        images: uint8 ``(n, height, width, channels)``.
        labels: The classes asked for, int32 ``(n,)``, or None.
        nfe: Network evaluations per sample.
        chains: Where the chains stand that gave them, on the host; None where there are none.
    """

    images: np.ndarray
    labels: np.ndarray | None
    nfe: int
    chains: Chains | None = None


def compile_draw(
    experiment: Experiment, mesh: Mesh, guidance: float = 1.0
) -> tuple[Draw, Callable[[], int]]:
    """The system's ``sample`` for many devices, whichever mode the state was trained in.

    Args:
        experiment: What is drawn from.
        mesh: The devices, which share the rows.
        guidance: Guidance scale; 1 draws plainly, at one network evaluation a call.

    Returns:
        ``draw(state, key, index, labels, low_res=None) -> uint8 images`` on the host, for a number
        of rows that the mesh divides, ``low_res`` uint8 too; and a function that tells the network
        evaluations per sample once drawn.
    """
    _check_drawable(experiment)
    nfe, whole = [], NamedSharding(mesh, PartitionSpec())
    decode, decoder = _decoder(experiment, whole)

    def body(state, decoder, key, index, labels, low_res):
        small = None if low_res is None else images.to_float(low_res)
        samples = experiment.system.sample(state, key, Request(index, labels, guidance, small))
        nfe.append(samples.nfe)
        return images.to_uint8(decode(decoder, samples.images))

    compiled = jax.jit(body, out_shardings=whole)

    def run(state: TrainState, key: Key, index: np.ndarray, labels=None, low_res=None):
        rows = jax.device_put((index, labels, low_res), parallel.batch_sharding(mesh))
        return np.asarray(compiled(state, decoder, key, *rows))

    return run, lambda: nfe[-1]


def _decoder(
    experiment: Experiment, whole: NamedSharding
) -> tuple[Callable[[Any, Array], Array], Any]:
    """``(parameters, what a system draws) -> images``, and the parameters, on all devices.

    Raises:
        ValueError: What is drawn are latents, and no autoencoder decodes them.
    """
    if experiment.scale is None:
        return lambda params, x: x, ()
    autoencoder = experiment.autoencoder
    if autoencoder is None:
        raise ValueError(
            f"latents {experiment.shape} are drawn, which an autoencoder decodes: name its run by "
            "--config.data.autoencoder=WORKDIR"
        )

    def decode(params, x):
        z = x / experiment.scale
        return autoencoder.network.apply({"params": params}, z, method="decode")

    return decode, jax.device_put(autoencoder.params, whole)


def draw(
    experiment: Experiment,
    state: TrainState,
    *,
    number: int,
    labels: np.ndarray | None,
    low_res: np.ndarray | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    progress: str | None = None,
) -> Drawn:
    """Draws samples ``0 .. number - 1`` of a seed, in batches of ``config.sample.batch_size``.

    Args:
        experiment: What is drawn from.
        state: Its state; the average that ``config.sample.ema`` names is used.
        number: How many.
        labels: Classes asked for, int32 ``(number,)``; None for an unconditional system.
        low_res: Small images that an upsampler enlarges, uint8 ``(number, height, width, C)``.
        guidance: Guidance scale; 1 draws plainly.
        seed: Of the samples.
        progress: Title of a progress bar, shown on a terminal; None for none.

    Raises:
        ValueError: Labels and system do not fit.
    """
    _check_drawable(experiment)
    check_classes(labels, number, experiment.num_classes)
    mesh = parallel.sampling_mesh(experiment.config.parallel.fsdp)
    size = min(experiment.config.sample.batch_size, number)
    size = -(-size // mesh.size) * mesh.size
    run, nfe = compile_draw(experiment, mesh, guidance)
    key, parts = jax.random.key(seed), []
    if experiment.config.sampler == CHAINS:
        return _draw_chains(experiment, state, mesh, labels, number, guidance, key, progress)
    # Off (None) unless the output is a terminal.
    bar = tqdm(total=number, desc=progress, unit="sample", disable=None if progress else True)
    with bar:
        for start in range(0, number, size):
            # The last batch is as large as the others: one program serves all.
            index = np.arange(start, start + size)
            # What there is of the last batch is repeated.
            rows = np.resize(np.arange(start, min(start + size, number)), size)
            asked = (None if each is None else each[rows] for each in (labels, low_res))
            part = run(state, key, index, *asked)[: number - start]
            parts.append(part)
            bar.update(len(part))
    return Drawn(np.concatenate(parts), labels, nfe())


def _draw_chains(
    experiment: Experiment,
    state: TrainState,
    mesh: Mesh,
    labels: np.ndarray | None,
    number: int,
    guidance: float,
    key: Key,
    progress: str | None,
) -> Drawn:
    """Draws round by round: one program begins the chains, and one goes on with them."""
    settings = chains.settings(experiment.config)
    count = settings.chains
    if count % mesh.size:
        raise ValueError(
            f"config.dmcmc.chains={count} must be a multiple of the {mesh.size} devices"
        )
    if labels is not None and (labels != np.resize(labels[:count], number)).any():
        raise ValueError(
            f"a chain keeps its class, so labels must repeat every config.dmcmc.chains={count} "
            "samples: use config.sample.labels='cycle', or a number of classes that divides it"
        )
    own = None if labels is None else np.resize(labels[:count], count)
    rows = parallel.batch_sharding(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    nfe = []
    decode, decoder = _decoder(experiment, whole)

    def body(state, decoder, key, index, labels, walking):
        request = Request(index, labels, guidance, chains=walking)
        samples = experiment.system.sample(state, key, request)
        nfe.append(samples.nfe)
        return images.to_uint8(decode(decoder, samples.images)), samples.chains

    compiled = jax.jit(body, out_shardings=(whole, None))
    index, own = jax.device_put((np.arange(count), own), rows)
    walking = _resumed(settings.resume, (count, *experiment.shape), rows)
    parts = []
    bar = tqdm(total=number, desc=progress, unit="sample", disable=None if progress else True)
    with bar:
        for start in range(0, number, count):
            part, walking = compiled(state, decoder, key, index, own, walking)
            parts.append(np.asarray(part)[: number - start])
            bar.update(len(parts[-1]))
    gathered = jax.jit(lambda tree: tree, out_shardings=whole)(walking)
    return Drawn(np.concatenate(parts), labels, nfe[-1], jax.device_get(gathered))


def _resumed(path: str, shape: tuple[int, ...], rows: NamedSharding) -> Chains | None:
    """The chains that a file holds, on the devices; None without a file."""
    if not path:
        return None
    if not pathlib.Path(path).is_file():
        raise ValueError(f"config.dmcmc.resume={path!r}: there is no such file")
    try:
        with np.load(path) as file:
            x, sigma, finished = (file[name] for name in ("x", "sigma", "round"))
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"config.dmcmc.resume={path!r} holds no chains: {error}") from error
    if x.shape != shape or sigma.shape != shape[:1]:
        raise ValueError(
            f"config.dmcmc.resume={path!r} holds chains {x.shape}, but this run has {shape}: set "
            "config.dmcmc.chains to as many"
        )
    return Chains(ChainState(*jax.device_put((x, sigma), rows)), jax.numpy.asarray(finished))


def save_chains(path: pathlib.Path, standing: Chains) -> None:
    """Writes chains so that ``config.dmcmc.resume`` goes on with them."""
    metrics.save_npz(path, {**standing.state._asdict(), "round": standing.round})


def _check_drawable(experiment: Experiment) -> None:
    if experiment.system.sample is None:
        raise ValueError(
            f"system {experiment.config.system!r} draws no images: --mode evaluate scores it, and "
            "it serves another run (--config.sample.classifier=WORKDIR, "
            "--config.dmcmc.predictor=WORKDIR or --config.data.autoencoder=WORKDIR)"
        )


def sample(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> pathlib.Path:
    """What ``--mode sample`` does: draws as ``config.sample`` says, saves, and tells where.

    Returns:
        Path of the ``.npz``; the grid lies beside it.
    """
    config = experiment.config.sample
    asked = upsampling.wanted(
        experiment.config, experiment.num_classes, config.labels, config.number, config.seed
    )
    drawn = draw(
        experiment,
        state,
        number=config.number,
        **asked._asdict(),
        guidance=config.guidance,
        seed=config.seed,
        progress="sampling",
    )
    path = pathlib.Path(workdir, "samples", name(experiment, state, drawn, asked.digest))
    if jax.process_index() == 0:
        metrics.save_samples(path, drawn.images, drawn.labels)
        grid = path.with_suffix(".png")
        shown = upsampling.beside(asked.low_res, drawn.images[:400])
        cycle = config.labels == "cycle" and asked.low_res is None
        columns = images.class_columns(len(shown), experiment.num_classes) if cycle else None
        images.save_png(grid, images.contact_sheet(shown, columns))
        print(f"{config.number} samples at {drawn.nfe} network evaluations each: {path}")
        if drawn.chains is not None:
            standing = path.with_suffix(".chains.npz")
            save_chains(standing, drawn.chains)
            print(_about_chains(experiment, standing, drawn.nfe))
        print(f"as a picture: {grid}")
    return path


def _about_chains(experiment: Experiment, standing: pathlib.Path, nfe: int) -> str:
    """What the chains cost beside the samples, in network evaluations, and how to go on."""
    config = experiment.config
    settings = chains.settings(config)
    each = -(-config.sample.number // settings.chains)
    begun = 0 if settings.resume else chains.start_calls(config) * nfe // config.sample.calls
    return (
        f"of {settings.chains} chains, {each} each; a chain took {begun} before its "
        f"first sample, {begun / each:.3g} a sample here; to go on: "
        f"--config.dmcmc.resume={standing}"
    )


def name(experiment: Experiment, state: TrainState, drawn: Drawn, low_res: str = "") -> str:
    """File name that tells how samples were drawn; other settings never share it.

    ``low_res`` is the digest of the small images that were enlarged, if any.
    """
    config = experiment.config.sample
    settings = config.to_dict()
    by_chains = experiment.config.sampler == CHAINS
    if by_chains:
        settings |= {"dmcmc": experiment.config.dmcmc.to_dict()}
    if experiment.autoencoder is not None:
        settings |= {"autoencoder": experiment.autoencoder.digest}
    if low_res:
        settings |= {"low_res": low_res}
    settings = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    shape = "x".join(map(str, drawn.images.shape))
    return (
        f"step{int(state.step)}_{'dmcmc_' if by_chains else ''}{config.solver}{config.calls}"
        f"_guidance{config.guidance:g}"
        f"_seed{config.seed}_{digest}_{shape}.npz"
    )
