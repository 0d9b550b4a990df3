"""Config files: what may stand in one, reading it, storing it beside a run.

A config file is Python and defines ``get_config(argument) -> ConfigDict``; its argument is what
follows the colon in ``configs/digits/default.py:quick``. ``FIELDS`` lists every field there is.
Fields of kind ``OPTIONS`` are open: they hold keyword arguments of what their neighbour names.
"""

import difflib
import json
import math
import os
import pathlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

__all__ = [
    "DEFAULTS",
    "FIELDS",
    "INFERRED",
    "OPTIONS",
    "flatten",
    "load",
    "override",
    "unknown_field",
    "validate",
    "without_lists",
]


class Rule(NamedTuple):
    """What a field may hold: a test, and the test in words."""

    holds: Callable[[Any], bool]
    meaning: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(low: int) -> Rule:
    return Rule(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
        f"an integer of at least {low}",
    )


def _one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))


COUNT, SIZE = _integer(0), _integer(1)
TEXT = Rule(lambda value: isinstance(value, str), "a string")
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
POSITIVE = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Rule(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
FRACTION = Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
RATES = Rule(
    lambda value: isinstance(value, tuple) and all(_is_number(r) and 0 < r < 1 for r in value),
    "a tuple of numbers between 0 and 1, such as (0.999,)",
)
INTERVAL = Rule(
    lambda value: (
        value == ()
        or (isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)))
    ),
    "() or two times (t_low, t_high)",
)
SHAPE = Rule(
    lambda value: isinstance(value, tuple) and len(value) == 3 and all(map(SIZE.holds, value)),
    "(height, width, channels)",
)
OPTIONS = Rule(lambda value: isinstance(value, Mapping), "a dict of keyword arguments")

FIELDS: dict[str, Rule] = {
    "seed": COUNT,
    "system": TEXT,
    "data.source": TEXT,
    "data.options": OPTIONS,
    "data.flip": FLAG,
    "data.conditional": FLAG,
    "data.shape": SHAPE,
    "data.num_classes": COUNT,
    "data.autoencoder": TEXT,
    "data.low_res": COUNT,
    "data.scale": POSITIVE,
    "data.encoded_by": TEXT,
    "network": TEXT,
    "model": OPTIONS,
    "schedule.name": TEXT,
    "schedule.options": OPTIONS,
    "prediction.parametrization": TEXT,
    "prediction.sigma_data": POSITIVE,
    "prediction.learned_variance": FLAG,
    "loss.target": TEXT,
    "loss.weighting": TEXT,
    "loss.weighting_options": OPTIONS,
    "loss.times": TEXT,
    "loss.times_options": OPTIONS,
    "loss.label_dropout": FRACTION,
    "loss.augmentation": TEXT,
    "loss.augmentation_options": OPTIONS,
    "optimizer.name": TEXT,
    "optimizer.options": OPTIONS,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup_steps": COUNT,
    "optimizer.decay": _one_of("constant", "linear", "cosine"),
    "optimizer.clip_norm": NOT_NEGATIVE,
    "optimizer.ema_rates": RATES,
    "optimizer.ema_warmup": FLAG,
    "train.steps": SIZE,
    "train.batch_size": SIZE,
    "train.microbatches": SIZE,
    "train.log_every": SIZE,
    "train.checkpoint_every": SIZE,
    "train.keep_last": SIZE,
    "train.keep_every": COUNT,
    "train.sample_every": COUNT,
    "parallel.mode": _one_of("sharding", "pmap"),
    "parallel.fsdp": SIZE,
    "sampler": TEXT,
    "sample.number": SIZE,
    "sample.batch_size": SIZE,
    "sample.seed": COUNT,
    "sample.labels": TEXT,
    "sample.solver": TEXT,
    "sample.options": OPTIONS,
    "sample.calls": SIZE,
    "sample.grid": TEXT,
    "sample.denoise": FLAG,
    "sample.guidance": NOT_NEGATIVE,
    "sample.guidance_interval": INTERVAL,
    "sample.guidance_channels": COUNT,
    "sample.classifier": TEXT,
    "sample.low_res": TEXT,
    "sample.threshold": _one_of("", "static", "dynamic"),
    "sample.ema": TEXT,
    "dmcmc": OPTIONS,
    "evaluate.number": SIZE,
    "evaluate.guidance": NOT_NEGATIVE,
    "evaluate.seed": COUNT,
    "evaluate.likelihood": _one_of("", "ode", "bound"),
    "evaluate.likelihood_number": SIZE,
    "evaluate.inception": TEXT,
    "evaluate.reference": TEXT,
    "evaluate.convention": _one_of("", "tensorflow", "pytorch", "clean"),
}

# Filled in where a file leaves them out: what most experiments do without, and what runs stored by
# an earlier version do not have.
DEFAULTS: dict[str, Any] = {
    "data.autoencoder": "",
    "data.low_res": 0,
    "loss.augmentation": "",
    "loss.augmentation_options": {},
    "sample.classifier": "",
    "sample.low_res": "",
    "dmcmc": {},
    "sample.guidance_channels": 0,
    "evaluate.likelihood": "",
    "evaluate.likelihood_number": 256,
    "evaluate.inception": "",
    "evaluate.reference": "",
    "evaluate.convention": "",
}

# Found from the source and recorded when an experiment is built; a file may leave them out.
INFERRED = ("data.shape", "data.num_classes", "data.scale", "data.encoded_by")


def load(source: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads a config.

    Args:
        source: A Python file, with ``:argument`` for its ``get_config`` if wanted; or the
            ``config.json`` of a run.

    Returns:
        The config, validated and without lists: a sequence in a config is a tuple.

    Raises:
        ValueError: There is no such file, it fails, or the config is not valid.
    """
    name, _, argument = os.fspath(source).partition(":")
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        directory = path if path.is_dir() else path.parent
        beside = {file.name: str(file) for file in sorted(directory.glob("*.py"))}
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {beside[near[0]]}?" if near else ";"
        raise ValueError(f"no config file {name}{hint} there are {', '.join(beside) or 'none'}")
    try:
        if path.suffix == ".json":
            return _normalised(_read_json(path))
        config = _run(path, argument)
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(
                f"get_config returned {type(config).__name__}, not an ml_collections.ConfigDict"
            )
        return _normalised(config.to_dict())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _run(path: pathlib.Path, argument: str) -> Any:
    """What the file's ``get_config`` returns; its failures become one line with their place."""
    space: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), space)
        if "get_config" not in space:
            raise ValueError("define get_config(argument) -> ConfigDict")
        return space["get_config"](*([argument] if argument else []))
    except ValueError:  # the file's own message, about its argument or its values
        raise
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}: " for frame in frames if frame.filename == str(path)]
        raise ValueError(f"{lines[-1] if lines else ''}{type(error).__name__}: {error}") from error


def _normalised(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    values = without_lists(values)
    for field, default in DEFAULTS.items():
        section, _, name = field.rpartition(".")
        inside = values.setdefault(section, {}) if section else values
        if isinstance(inside, dict):  # else what is wrong with the section is told below
            inside.setdefault(name, default)
    config = ml_collections.ConfigDict(values)
    validate(config)
    return config


def without_lists(value: Any) -> Any:
    """The value with every list in it made a tuple: JSON knows no difference, and == does."""
    if isinstance(value, Mapping):
        return {key: without_lists(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(without_lists, value))
    return value


def override(
    config: ml_collections.ConfigDict, arguments: Sequence[str]
) -> ml_collections.ConfigDict:
    """The config with fields changed by command-line arguments, as ``--config.train.steps=100``.

    The forms are those of ``ml_collections.config_flags``; open fields take new names too.

    Raises:
        ValueError: An argument is no such flag, its field is unknown or its value of another kind.
    """
    for argument in arguments:
        flag = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if flag and (error := unknown_field(flag[1])) is not None:
            raise error
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    config = ml_collections.ConfigDict(config.to_dict())
    argv = ["diffjax", *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config",
            config,
            flag_values=values,
            lock_config=False,
            accept_new_attributes=True,
            sys_argv=argv,
        )
        rest = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        # 'flag --config.train.steps=many: invalid literal for int() ...'
        reason = str(error.__context__)
        given = str(error).removeprefix("flag --").removesuffix(f": {reason}")
        field, _, value = given.removeprefix("config.").partition("=")
        if field in FIELDS:
            reason = f"must be {FIELDS[field].meaning}; got {value!r}"
        raise ValueError(f"config.{field} {reason}") from error
    except (LookupError, TypeError, AttributeError, flags.Error) as error:
        raise ValueError(f"cannot override the config: {error}") from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: flags are written --name=value")
    return _normalised(config.to_dict())


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks the config against ``FIELDS``: none missing, none unknown, each of its kind.

    Raises:
        ValueError: It is not so; names the field.
    """
    values = config.to_dict()
    for field in flatten(values):
        if (error := unknown_field(field)) is not None:
            raise error
    for field, rule in FIELDS.items():
        try:
            value = values
            for part in field.split("."):
                value = value[part]
        except (KeyError, TypeError):
            if field in INFERRED:
                continue
            raise ValueError(f"config.{field} is missing: it must be {rule.meaning}") from None
        if not rule.holds(value):
            raise ValueError(f"config.{field} must be {rule.meaning}; got {value!r}")


def unknown_field(field: str) -> ValueError | None:
    """The error for a dotted name that is no field, nor inside an open one; None for a field."""
    for known, rule in FIELDS.items():
        if field == known or known.startswith(f"{field}."):
            return None
        if rule is OPTIONS and field.startswith(f"{known}."):
            return None
    section = field.rpartition(".")[0]
    beside = [known for known in FIELDS if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(field, FIELDS, n=1)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    names = [known.rpartition(".")[2] for known in beside]
    listing = f" config.{section} has {', '.join(names)}" if section and names else ""
    return ValueError(f"there is no config.{field}{hint}{listing}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, ``{'train.steps': 100, ...}``; an empty dict is a leaf."""
    flat = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the file is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("the file is damaged: not a JSON object")
    return values
