"""
How to fine-tune, by name. A method is one file of this folder with a `Trainer` whose loss is its own; a new one is such
a file, and a line here: its name, which is that of the file, and the name of its class.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import yaml
from transformers import Trainer

from modeling_hybrid.configuration_hybrid import unknown_key_message


# "ce" is cross entropy, which is what `Trainer` does by itself.
METHODS: dict[str, str] = {"ce": "Trainer", "core_tuning": "CoreTuning", "sup_re_mix": "SupReMix"}


def name_and_arguments(method: str) -> tuple[str, dict[str, Any]]:
    """
    Args:
        method: a name of [`METHODS`], or with arguments "{name: core_tuning, eta: 0.5}".

    Raises:
        ValueError: no such method.
    """
    try:
        given = yaml.safe_load(method)
    except yaml.YAMLError as error:
        raise ValueError(f"--method {method!r} is no name, nor of the form '{{name: NAME, key: value}}'.") from error
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, dict) or given.get("name") not in METHODS:
        name = given.get("name") if isinstance(given, dict) else given
        raise ValueError(unknown_key_message(str(name), list(METHODS), "The table of methods"))
    return given.pop("name"), given


def trainer_of(method: str) -> Callable[..., Trainer]:
    """
    The class of a method ([`name_and_arguments`]), with its arguments.

    Raises:
        ValueError: no such method, or an argument that it does not take.
    """
    name, given = name_and_arguments(method)
    if name == "ce":
        chosen, known = Trainer, []
    else:
        chosen = getattr(import_module(f".{name}", __package__), METHODS[name])
        parameters = inspect.signature(chosen).parameters.values()
        known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for key in given.keys() - set(known):
        if not known:
            raise ValueError(f"Method {name!r} has no arguments, but {key}={given[key]!r} was given; leave it out.")
        raise ValueError(unknown_key_message(str(key), known, f"Method {name!r}"))
    return partial(chosen, **given)
