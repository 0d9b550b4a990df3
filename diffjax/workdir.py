"""The config beside a run: what a workdir holds, and whether another config may go on with it.

The resolved config lies in ``config.json``, so that a checkpoint can be drawn from without
remembering how it was made.
"""

import json
import os
import pathlib

import ml_collections

from diffjax.configuration import INFERRED, flatten, load, without_lists

__all__ = ["CONFIG_FILE", "MAY_CHANGE", "check_workdir", "load_config", "save_config"]

CONFIG_FILE = "config.json"

# May differ when a run goes on: how it is drawn from, watched and spread, where its data lie.
MAY_CHANGE = (
    "data.autoencoder",
    "data.options.data_dir",
    "dmcmc.",
    "evaluate.",
    "parallel.",
    "sample.",
    "sampler",
    "train.checkpoint_every",
    "train.keep_",
    "train.log_every",
    "train.sample_every",
)


def save_config(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes ``config.json`` in the workdir, which is made if need be.

    Raises:
        ValueError: A field holds what a file cannot: use numbers, strings, booleans and tuples.
    """
    values = without_lists(config.to_dict())
    for field, value in flatten(values).items():
        if not _is_plain(value):
            raise ValueError(
                f"config.{field} holds a {type(value).__name__}, which cannot be stored; "
                "use numbers, strings, booleans and tuples"
            )
    path = pathlib.Path(workdir, CONFIG_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through a temporary name: an interrupted write leaves the old file or the new one.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


def _is_plain(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, dict)


def load_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """The config of the run in a workdir, exactly as it was saved.

    Raises:
        ValueError: The workdir holds no run, or its config is damaged.
    """
    path = pathlib.Path(workdir, CONFIG_FILE)
    if not path.is_file():
        state = "holds no run" if pathlib.Path(workdir).is_dir() else "does not exist"
        raise ValueError(
            f"workdir {os.fspath(workdir)} {state}: train there first (--mode train --config FILE)"
        )
    return load(path)


def check_workdir(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
    """Refuses a workdir that holds another experiment; a new or empty one is fine.

    Fields in ``MAY_CHANGE`` may differ from those of the run in it; so may the number of steps,
    unless the learning rate decays over them, and the data of a run that names none.

    Raises:
        ValueError: The workdir cannot be written, or its run has another config; names what
            differs.
    """
    workdir = pathlib.Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir {workdir} is a file; give a directory")
    above = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"workdir {workdir} cannot be written: {above} is no writable directory")
    if not (workdir / CONFIG_FILE).exists():
        return
    may_change = MAY_CHANGE
    if config.optimizer.decay == "constant":
        may_change += ("train.steps",)
    if not load_config(workdir).data.source:
        may_change += ("data.source", "data.options")
    stored, given = (
        {field: value for field, value in flatten(each.to_dict()).items() if value != {}}
        for each in (load_config(workdir), config)
    )
    differing = [
        field
        for field in sorted(stored.keys() | given.keys())
        if not field.startswith(may_change)
        and not (field in INFERRED and not (field in given and field in stored))
        and stored.get(field) != given.get(field)
    ]
    if differing:
        listing = ", ".join(
            f"{field}={stored.get(field)!r} (now {given.get(field)!r})" for field in differing[:4]
        )
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"workdir {workdir} holds another experiment, with {listing}{more}: "
            "use another --workdir, or the same config"
        )
