"""The standard system: a denoising network, conditional or not, and a solver.

Training draws a time and noise for every image, and regresses the chosen target. Sampling draws
noise at the start of the solver's grid and runs the solver on the averaged parameters, guided by
the network's own unconditional prediction where a scale other than 1 is asked for.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffjax import guidance, solvers
from diffjax import state as states
from diffjax.augmentation import Augment
from diffjax.data.images import to_float
from diffjax.losses import Slots
from diffjax.prediction import Parametrization, Predict, Prediction, network_predict
from diffjax.random import per_sample
from diffjax.schedules import Schedule, prior
from diffjax.solvers import Recipe
from diffjax.state import TrainState
from diffjax.systems.base import Batch, Request, Samples, System, gradient_update
from diffjax.systems.chains import Walk
from diffjax.systems.noisy_classifier import NoisyClassifier
from diffjax.typing import Array, Key

__all__ = ["Draw", "LabelledPredict", "Objective", "diffusion", "drop_labels", "sampler"]

Objective = Callable[[Predict, Schedule, Array, Array, Array], Array]
LabelledPredict = Callable[[Array, Array, Array | None], Prediction]
Draw = Callable[[LabelledPredict, Key, Request], Samples]


def diffusion(
    network: nn.Module,
    schedule: Schedule,
    parametrization: Parametrization,
    *,
    objective: Objective,
    times: Callable[[Schedule, Key, Slots], Array],
    optimizer: optax.GradientTransformation,
    draw: Draw,
    measure: Callable[[Predict, Array, Key, int], dict[str, Array]] | None = None,
    num_classes: int = 0,
    label_dropout: float = 0.1,
    prepare: Callable[[Array, Array], Array] = lambda images, keys: to_float(images),
    augment: Augment | None = None,
    shrink: Callable[[Array], Array] | None = None,
    ema_rates: Sequence[float] = (0.999,),
    ema_warmup: bool = True,
    sample_ema: str = "0.999",
    microbatches: int = 1,
    axis: str | None = None,
) -> System:
    """A denoising diffusion model. DDPM, ADM, DiT, EDM and their kin differ only in the arguments.

    Args:
        network: Called as ``network.apply(variables, x, label, labels, train=..., rngs=...)``, and
            with ``augmentation=...`` when training images are deformed.
        schedule: The forward process.
        parametrization: How the network sees its input and what its output stands for.
        objective: ``(predict, schedule, x0, t, noise) -> loss (n,)``, from ``losses``.
        times: ``(schedule, key, slots) -> t (n,)``, from ``losses``.
        optimizer: Turns gradients into updates.
        draw: How samples are drawn from ``(x, t, labels) -> Prediction``; see :func:`sampler`.
        measure: ``(predict, images, keys, levels) -> {name: value}`` of images held out, or None.
        num_classes: Number of classes; 0 makes the system unconditional.
        label_dropout: Share of training labels replaced by the null label ``num_classes``.
        prepare: ``(images, keys) -> x0``: what the images of a batch are to the system, such as
            :func:`diffjax.systems.latents`.
        augment: ``(images, keys) -> (images, what was done (n, k))``, from ``augmentation``: how
            training images are deformed. The network is told, and draws plain samples.
        shrink: ``x0 -> small images``, such as :func:`diffjax.data.shrink`: makes the system an
            upsampler, whose network sees ``low_res=...``, in training those of the images at hand.
        ema_rates: Rates of the parameter averages kept.
        ema_warmup: Whether the averages warm up.
        sample_ema: Rate of the average that samples are drawn with; '' for the raw parameters.
        microbatches: Parts a batch is worked off in.
        axis: Name of the mapped axis under ``pmap``.
    """
    conditional = num_classes > 0

    def init(key: Key, batch: Batch) -> TrainState:
        params_key, state_key = jax.random.split(key)
        x = prepare(batch["image"][:1], state_key[None])
        label = parametrization.label(schedule, jnp.full((1,), schedule.t_max))
        labels = batch["label"][:1] if conditional else None
        told = {"augmentation": augment(x, state_key[None])[1]} if augment else {}
        if shrink:
            told["low_res"] = shrink(x)
        variables = network.init(params_key, x, label, labels, **told)
        return states.create(state_key, variables["params"], optimizer, ema_rates)

    def predict_with(params, low_res=None, **options):
        """``(x, t, labels) -> Prediction`` with these parameters."""

        def predict(x, t, labels):
            told = dict(options)
            if low_res is not None:  # guidance asks about every row twice, half after half
                told["low_res"] = jnp.tile(low_res, (x.shape[0] // low_res.shape[0], 1, 1, 1))

            def apply(x, label):
                return network.apply({"params": params}, x, label, labels, **told)

            return network_predict(apply, schedule, parametrization)(x, t)

        return predict

    def loss(params, batch: Batch, slots: Slots, key: Key):
        time_key, noise_key, label_key, dropout_key, augment_key = jax.random.split(key, 5)
        x0, told = prepare(batch["image"], slots.keys(jax.random.fold_in(key, 5))), {}
        if augment:
            x0, told["augmentation"] = augment(x0, slots.keys(augment_key))
        if shrink:
            told["low_res"] = shrink(x0)
        t = times(schedule, time_key, slots)
        noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(slots.keys(noise_key))
        labels = None
        if conditional:
            labels = drop_labels(batch["label"], num_classes, label_dropout, slots, label_key)
        # Masks are drawn for the rows at hand together: those of every part must differ.
        dropout_key = jax.random.fold_in(dropout_key, slots.index[0])
        predict = predict_with(params, train=True, rngs={"dropout": dropout_key}, **told)
        return objective(lambda x, t: predict(x, t, labels), schedule, x0, t, noise).mean(), {}

    def sample(state: TrainState, key: Key, request: Request) -> Samples:
        if (request.low_res is None) == bool(shrink):
            what = "small images to enlarge" if shrink else "no small images: it is no upsampler"
            raise ValueError(f"this system takes {what}, in request.low_res")
        params = states.select_parameters(state, sample_ema)
        return draw(predict_with(params, request.low_res), key, request)

    def measured(state: TrainState, images: Array, labels: Array | None, keys: Key, levels: int):
        low_res = shrink(prepare(images, keys)) if shrink else None
        predict = predict_with(states.select_parameters(state, sample_ema), low_res)
        return measure(lambda x, t: predict(x, t, labels), images, keys, levels)

    return System(
        init=init,
        update=gradient_update(
            loss, optimizer, microbatches=microbatches, ema_warmup=ema_warmup, axis=axis
        ),
        sample=sample,
        conditional=conditional,
        measure=measured if measure else None,
    )


def drop_labels(labels: Array, null: int, rate: float, slots: Slots, key: Key) -> Array:
    """Replaces each label by ``null`` with probability ``rate``, independently by row."""
    dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(slots.keys(key))
    return jnp.where(dropped, null, labels)


def sampler(
    schedule: Schedule,
    recipe: Recipe,
    shape: tuple[int, ...],
    *,
    num_classes: int = 0,
    scale: Callable[[Array, Array], Array] = lambda guidance, t: guidance,
    combine: guidance.Combine = guidance.linear,
    limit: Callable[[Predict], Predict] = lambda predict: predict,
    classifier: NoisyClassifier | None = None,
    guided_chain: Callable[[Callable[[Array, Array], Array]], Recipe] | None = None,
    walk: Walk | None = None,
) -> Draw:
    """How samples of a shape are drawn from a labelled prediction.

    The guidance scale ``s`` asked for means the same with and without a classifier: away from
    ``p(x)``, to ``p(x) p(y|x)^s``. So a classifier's gradient has weight ``s`` on an unconditional
    prediction, and ``s - 1`` on one that is conditional already.

    Args:
        schedule: The forward process.
        recipe: Solver and grid.
        shape: Shape of one sample, ``(H, W, C)``.
        num_classes: The null label of guidance.
        scale: ``(guidance, t) -> scale``: how the scale asked for depends on time.
        combine: How the conditional and the unconditional prediction become one.
        limit: ``predict -> predict``: thresholding. Applied last, but before a classifier's shift,
            as published.
        classifier: What guides instead of the network's own unconditional prediction.
        guided_chain: The recipe of a chain that takes the classifier's gradient itself (see
            :func:`diffjax.solvers.ancestral`); other solvers see a guided prediction.
        walk: Draws by chains instead of from noise; see :func:`diffjax.systems.chain_sampler`.

    Returns:
        ``draw(predict, key, request)``. Without labels for the network, or with a guidance scale
        that is the number 1 and no array, it draws at one network evaluation a call, and so with a
        classifier; guided by its own unconditional prediction, at two. Start and noise of sample
        ``i`` come from ``fold_in(key, index[i])``: the picture depends on nothing else. Raises
        ValueError when guidance is asked for without labels.
    """

    def guided(predict: LabelledPredict, request: Request) -> tuple[Predict, Recipe]:
        own_labels = request.labels if num_classes else None

        def plain(x, t):
            return predict(x, t, own_labels)

        unchanged = 1 if classifier is None or num_classes else 0
        if isinstance(request.guidance, int | float) and request.guidance == unchanged:
            return limit(plain), recipe
        if request.labels is None:
            raise ValueError(
                "guidance needs labels: draw from an unconditional system with guidance 1"
            )
        if classifier is None:
            free = guidance.classifier_free(
                predict,
                request.labels,
                num_classes,
                lambda t: scale(request.guidance, t),
                combine=combine,
            )
            return limit(free), recipe

        def weighted(x, t):
            found = classifier.log_probability(schedule, x, t, request.labels)
            return (scale(request.guidance, t) - unchanged) * found

        if guided_chain is not None:
            gradient = jax.grad(lambda x, t: weighted(x, t).sum())
            return limit(plain), guided_chain(gradient)
        return guidance.classifier(limit(plain), schedule, weighted), recipe

    def draw(predict: LabelledPredict, key: Key, request: Request) -> Samples:
        if walk is not None:
            return walk(lambda rows: guided(predict, rows)[0], key, request)
        keys = per_sample(key, request.index)
        start, noise = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        x = prior(schedule, recipe.ts[0], (request.index.shape[0], *shape), start)
        bound, chosen = guided(predict, request)
        solution = solvers.run(chosen, bound, x, noise)
        return Samples(solution.x, request.labels, solution.nfe)

    return draw
