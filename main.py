"""Trains diffusion models, draws samples from them and measures how good those are.

  python main.py --mode train    --config configs/digits/default.py --workdir runs/digits
  python main.py --mode sample   --workdir runs/digits --config.sample.number=64
  python main.py --mode evaluate --workdir runs/digits
  python main.py --mode dry_run  --config configs/cifar10/ddpm.py
  python main.py --mode convert  --checkpoint model.pt --family adm --workdir runs/adm

Modes
  train     trains, or goes on with the run in the workdir
  sample    draws samples from the run in the workdir
  fit       learns the grid and weights of --config.sample.calls calls for the run in the workdir
  evaluate  scores samples of the run in the workdir against its data
  stats     writes feature statistics of the config's data into the workdir
  encode    writes latents of the config's data by --config.data.autoencoder into the workdir
  dry_run   prints the config, and what an update takes: parameters, FLOPs, memory; writes nothing
  convert   writes a workdir with the weights of a published PyTorch checkpoint, to draw from
  demo      trains, draws and scores, one after the other

Every field of the config is a flag: --config.train.steps=100 --config.sample.options.eta=0.5. A
config file may take an argument after a colon: configs/digits/default.py:quick. A run keeps its
config, so with a run in --workdir no --config is needed.
"""

import logging as formats
import os
import pathlib
import platform
import re
import sys
from collections.abc import Sequence

from absl import flags, logging


def main(argv: Sequence[str]) -> int:
    """Runs a command line and returns its exit code: 2 for a mistake in it, told in one line."""
    try:
        options, overrides = parse(argv)
        if options.help:
            print(f"{__doc__}\nFlags\n{options.module_help('main.py')}")
            return 0
        run(options, overrides)
    except (ValueError, OSError, flags.Error) as error:
        if "--traceback" in argv:
            raise
        print(f"diffjax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffjax: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and the arguments left over, which are overrides of the config."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    own = dict(flag_values=values, module_name="main.py")
    flags.DEFINE_enum("mode", None, list(MODES), "What to do.", **own)
    flags.DEFINE_string("config", None, "A config file; :argument may follow.", **own)
    flags.DEFINE_string("workdir", None, "Directory of the run.", **own)
    flags.DEFINE_string("checkpoint", None, "convert: a .pt, .safetensors or .npz.", **own)
    flags.DEFINE_string("family", None, "convert: whose network it is.", **own)
    flags.DEFINE_string("architecture", "", "convert: 'image_size=64 ...', if asked for.", **own)
    flags.DEFINE_bool("distributed", False, "Call jax.distributed.initialize() first.", **own)
    flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.", **own)
    flags.DEFINE_bool("help", False, "Show this.", **own)
    rest = values(list(argv), known_only=True)[1:]
    for argument in rest:
        if re.match(r"--?[A-Za-z]", argument) and not re.match(r"--?(no)?config\.", argument):
            from diffjax.options import unknown

            raise unknown("unknown flag", argument.split("=")[0], [f"--{name}" for name in values])
    return values, rest


def run(options: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Does what the flags say. Everything is checked before anything is written."""
    mode, workdir = options.mode, options.workdir
    if mode is None:
        raise ValueError(f"give --mode, one of {', '.join(MODES)} (--help says what they do)")
    if workdir is None and mode != "dry_run":
        raise ValueError(f"--mode {mode} needs --workdir, the directory of the run")
    if mode == "convert":
        return convert(options, overrides)
    if workdir is None and options.config is None:
        raise ValueError("give --config, for example configs/digits/default.py")

    # Imported here and below, so that help and mistakes are quick.
    from diffjax import configuration
    from diffjax.process import reuse_memory
    from diffjax.workdir import check_workdir, load_config

    reuse_memory()
    if mode == "encode" and options.config is None:
        raise ValueError("--mode encode needs --config: its data are encoded")
    stored = options.config is None
    config = load_config(workdir) if stored else configuration.load(options.config)
    config = configuration.override(config, overrides)
    if workdir is not None:
        check_workdir(config, workdir)

    import jax

    if options.distributed:
        jax.distributed.initialize()
    from diffjax import experiment as experiments

    if mode == "encode":
        return encode(config, workdir)
    trained = {}
    if config.sample.classifier:
        from diffjax.serving import load_classifier

        trained["classifier"] = load_classifier(config.sample.classifier)
    if config.sampler == "dmcmc" and config.dmcmc.get("predictor"):
        from diffjax.serving import load_predictor

        trained["predictor"] = load_predictor(config.dmcmc.predictor)
    if config.data.autoencoder and mode != "dry_run":
        from diffjax.serving import load_autoencoder

        trained["autoencoder"] = load_autoencoder(config.data.autoencoder)
    open_data = mode not in ("sample", "fit", "dry_run")
    experiment = experiments.build(config, open_data=open_data, **trained)
    MODES[mode](experiment, workdir)


def train(experiment, workdir: str):
    """Trains, with the config kept beside the run; returns the final state."""
    import jax

    from diffjax import train as training
    from diffjax.experiment import check_devices
    from diffjax.workdir import check_workdir

    if not _trainable(experiment):
        raise ValueError(
            f"config.network={experiment.config.network!r} has no parameters to train: use --mode "
            "sample or evaluate"
        )
    check_devices(experiment.config, jax.device_count())
    check_workdir(experiment.config, workdir)  # again, with what was found in the data
    _save_config(experiment, workdir)
    try:
        return training.train(experiment, workdir)
    except training.TrainingDiverged as error:
        sys.exit(f"diffjax: {error}")


def sample(experiment, workdir: str) -> None:
    """Draws samples from the newest checkpoint."""
    from diffjax import sampling

    sampling.sample(experiment, _restore(experiment, workdir), workdir)


def fit(experiment, workdir: str) -> None:
    """Learns a sampler for the newest checkpoint."""
    from diffjax import fitting

    fitting.fit(experiment, _restore(experiment, workdir), workdir)


def evaluate(experiment, workdir: str) -> None:
    """Scores the newest checkpoint."""
    from diffjax import evaluation, inception_scores
    from diffjax.experiment import real_images

    settings = experiment.config.evaluate
    if settings.reference and not settings.inception:
        raise ValueError(
            f"config.evaluate.reference asks for Inception features. {inception_scores.HINT}"
        )
    state = _restore(experiment, workdir)
    if settings.inception:
        inception_scores.evaluate(experiment, state, workdir)
        return
    evaluation.evaluate(experiment, state, workdir)
    # Smaller images mean nothing to the network; a system that draws none has its own measures.
    if experiment.system.sample is not None and min(real_images(experiment).shape[:2]) >= 32:
        print(inception_scores.HINT)


def encode(config, directory: str) -> None:
    """Writes latents of the data."""
    from diffjax import encoding

    encoding.run(config, directory)


def convert(options: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Makes a run of a published checkpoint."""
    from diffjax.convert import FAMILIES

    if options.checkpoint is None:
        raise ValueError("--mode convert needs --checkpoint, a .pt, .safetensors or .npz file")
    if options.family is None:
        raise ValueError(f"--mode convert needs --family, one of {', '.join(sorted(FAMILIES))}")
    from diffjax import conversion

    conversion.run(
        options.checkpoint,
        options.family,
        options.workdir,
        architecture=options.architecture,
        config=options.config,
        overrides=overrides,
    )


def stats(experiment, workdir: str) -> None:
    """Writes feature statistics of the data."""
    from diffjax import experiment as experiments
    from diffjax import inception_scores, reference

    if experiment.config.evaluate.inception:
        path = inception_scores.write_statistics(experiment, workdir)
    else:
        path = reference.write(experiments.real_images(experiment), workdir)
    print(f"wrote {path}")


def dry_run(experiment, workdir: str | None) -> None:
    """Prints what the experiment is and takes."""
    del workdir  # stays as it is
    from diffjax import dry_run

    print(dry_run.report(experiment))


def demo(experiment, workdir: str) -> None:
    """Everything in turn."""
    from diffjax import demo

    state = train(experiment, workdir)
    demo.show(experiment, state, workdir)


MODES = {
    "train": train,
    "sample": sample,
    "fit": fit,
    "evaluate": evaluate,
    "stats": stats,
    "encode": encode,
    "convert": convert,
    "dry_run": dry_run,
    "demo": demo,
}


def _trainable(experiment) -> bool:
    import jax

    from diffjax.train import state_shapes

    return bool(jax.tree.leaves(state_shapes(experiment).params))


def _restore(experiment, workdir: str):
    """The newest state of the run; the initial one of a system that needs no training."""
    import jax

    from diffjax import checkpoint, parallel
    from diffjax.train import state_shapes

    if not _trainable(experiment):
        _save_config(experiment, workdir)
        return experiment.system.init(jax.random.key(experiment.config.seed), None)
    mesh = parallel.sampling_mesh(experiment.config.parallel.fsdp)
    return checkpoint.restore_for_sampling(workdir, state_shapes(experiment, mesh))


def _save_config(experiment, workdir: str) -> None:
    import jax

    from diffjax.workdir import save_config

    if jax.process_index() == 0:
        save_config(experiment.config, workdir)


def prepare_process() -> None:
    """Settings of the whole process: one plain line a warning, and a cache of compiled programs."""
    flags.FLAGS.mark_as_parsed()  # absl's logging waits for its own flags, of which none are used
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(formats.Formatter("%(levelname)s: %(message)s"))
    # Of other libraries, errors only.
    handler.addFilter(lambda line: line.levelno > formats.WARNING or "diffjax" in line.pathname)
    # The second command of a kind starts at once. By host: a program for the CPU of one need not
    # run on another that shares the home directory.
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "diffjax" / platform.node()))


if __name__ == "__main__":
    prepare_process()
    sys.exit(main(sys.argv))
