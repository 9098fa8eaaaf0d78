"""
The configuration of a run: a YAML file, with `section.key=value` overrides on top.

`sections.py` is the typed tree with its defaults, `rules.py` what its values must be.
"""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from modeling_hybrid.configuration_hybrid import unknown_key_message

from .rules import validate
from .safety import refuse_remote_data, refuse_resolvers, refuse_secrets
from .sections import (
    SUITE,
    AugmentationConfig,
    CardConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizationConfig,
    PretrainConfig,
)


__all__ = [
    "SUITE",
    "AugmentationConfig",
    "CardConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OptimizationConfig",
    "PretrainConfig",
    "differences",
    "load_config",
    "load_config_beside",
    "save_config",
    "to_dict",
]


def load_config(path: str | Path, overrides: list[str] = ()) -> PretrainConfig:
    """
    The configuration in the YAML file `path`, with `section.key=value` overrides applied on top, validated.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of another type, a missing value, a
            malformed override, an environment variable, a secret, or a combination that cannot train.
        FileNotFoundError: no such file.
    """
    for override in overrides:
        if not re.match(r"[\w-]+(\.[\w-]+)*=", override):
            raise ValueError(
                f"Override {override!r} is not of the form key=value, for instance optimization.num_steps=10."
            )
    try:
        given = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]
        for tree in given:
            refuse_resolvers(OmegaConf.to_container(tree))
            refuse_secrets(OmegaConf.to_container(tree))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PretrainConfig), *given))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ValueError(_nearest_known_key(error)) from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}: {reason}" if error.full_key else reason) from None
    except (TypeError, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} or an override is not a tree of keys and values: {error}") from None
    validate(config)
    config.evaluation.suite = [name for name in SUITE if name in config.evaluation.suite]
    return config


def load_config_beside(checkpoint: Path, path: Path | None, overrides: list[str] = ()) -> PretrainConfig:
    """
    The configuration in `path`; or, where it is `None`, that of the run which the checkpoint lies in, whose data are
    read from other machines only where the user names them in the overrides.

    Raises:
        ValueError: there is none, or [`load_config`] refuses it, or it reads data from another machine.
    """
    beside = checkpoint.parent / "config.yaml"
    if not (path or beside).exists():
        raise ValueError(f"{path or beside} does not exist; name the configuration of the run with --config.")
    config = load_config(path or beside, overrides)
    if path is None:
        named = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        tree = to_dict(config)
        places = {"data": tree["data"], "evaluation": {"foreign_datasets": tree["evaluation"]["foreign_datasets"]}}
        refuse_remote_data(places, named, beside)
    return config


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.structured(config))


def save_config(config: PretrainConfig, path: str | Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    if is_dataclass(one):
        one, other = to_dict(one), to_dict(other)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix]
    keys = sorted(one.keys() | other.keys())
    return [name for key in keys for name in differences(one.get(key), other.get(key), f"{prefix}.{key}".lstrip("."))]


def _nearest_known_key(error: OmegaConfBaseException) -> str:
    """The complaint about an unknown key, with the section it stands in and the nearest key of that section."""
    section: type = PretrainConfig
    *path, key = (error.full_key or str(error.key)).split(".")
    for name in path:
        section = next(f.type for f in fields(section) if f.name == name)
    where = f"section {'.'.join(path)!r}" if path else "The configuration"
    return unknown_key_message(key, [f.name for f in fields(section)], where)
