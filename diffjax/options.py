"""Names and keyword arguments from outside: what a config says, checked before it is used.

Registries are plain dicts and constructors plain functions; their signatures are the list of what
is valid, so that a message can name it.
"""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["about", "choose", "keywords", "unknown"]

# By the kind of a default value (or the annotation where there is none): what may stand for it.
_KINDS = {
    bool: ((bool,), "True or False"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    tuple: ((tuple,), "a tuple"),
}


def unknown(what: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error for a name that is none of ``valid``: names the nearest, and all."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return ValueError(f"{what} {name!r}{hint} valid: {', '.join(valid) or 'none'}")


def choose(field: str, name: str, registry: Mapping[str, Any]) -> Any:
    """The registry's entry of the name that a field of the config holds.

    Raises:
        ValueError: The registry has no such entry.
    """
    if name not in registry:
        raise unknown(f"config.{field}: unknown name", name, registry)
    return registry[name]


def keywords(
    field: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    reserved: Collection[str] = (),
) -> dict[str, Any]:
    """The options in a field of the config as keyword arguments of a function.

    Args:
        field: Where they stand, for messages.
        function: What will take them; a function that takes any keyword checks them itself.
        options: The keyword arguments.
        reserved: Parameters that are not the config's to give.

    Returns:
        The options.

    Raises:
        ValueError: One is unknown, missing, or of another kind than the parameter's default.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in reserved
    }
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    called = getattr(function, "func", function).__name__  # a partial's own is that of a function
    for name, value in options.items():
        if name not in parameters:
            raise unknown(f"config.{field}: {called} has no option", name, parameters)
        kinds, meaning = _kinds(parameters[name])
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
            raise ValueError(f"config.{field}.{name} must be {meaning}; got {value!r}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"config.{field} needs {name}: {called} has no default")
    return dict(options)


def _kinds(parameter: inspect.Parameter) -> tuple[tuple[type, ...], str]:
    """Types that may be given for a parameter, and in words; all where that cannot be told."""
    default = parameter.default
    kind = parameter.annotation if default in (parameter.empty, None) else type(default)
    return _KINDS.get(kind, ((bool, object), "anything"))


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Puts the field of the config that it comes from before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("config."):
            raise
        raise ValueError(f"config.{field}: {error}") from error
