"""
What a configuration may not do: read the environment, hold a secret, or, where it came with a checkpoint, reach out.

A configuration is saved with its run, printed in the model card and handed on with the checkpoint.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# `${key.of.this.file}`; everything else in braces is a resolver, which reads the environment or calls a function.
_PLAIN_KEY = re.compile(r"\$\{[\w.\[\]-]*\}")
_NAMES_OF_SECRETS = re.compile(
    r"(^|_)(auth|authorization|token|secret|password|passwd|credentials?|(api|access|account)_key)(_|$)", re.IGNORECASE
)
# Tokens of the Hub, and user:password@ in an address.
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|://[^/\s@]*:[^/\s@]*@")


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dictionaries and lists."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}".lstrip("."))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{key}[{i}]")
    else:
        yield key, tree


def refuse_resolvers(tree: Any) -> None:
    """Raise `ValueError` where an unresolved tree would resolve anything but keys of its own."""
    for key, value in leaves(tree):
        if isinstance(value, str) and "${" in _PLAIN_KEY.sub("", value):
            raise ValueError(
                f"{key or 'The configuration'}: {value!r} is not read. A configuration resolves no environment "
                "variables and calls no functions; write the value itself, or another key as ${section.key}."
            )


def refuse_secrets(tree: Any) -> None:
    """Raise `ValueError`, which does not repeat it, where a tree holds a token, a password or the like."""
    for key, value in leaves(tree):
        named = isinstance(value, str) and value and any(map(_NAMES_OF_SECRETS.search, re.split(r"[.\[\]]+", key)))
        if named or _SECRETS.search(f"{key} {value}"):
            raise ValueError(
                f"{_SECRETS.sub('...', key)} holds a secret, which would be saved with the run and printed in its "
                "model card. Give it by the environment (HF_TOKEN, or the variables that your storage reads), or "
                "`hf auth login`."
            )


def refuse_remote_data(tree: Any, named: Any, path: Path) -> None:
    """
    Raise `ValueError` where `tree`, of the configuration `path` that came with a checkpoint, reads another machine that
    the user has not named. Sets of the Hub are read by their id, and local files, as they stand there.

    Args:
        named: what the user has named, a tree of the same keys.
    """
    by_user = set(leaves(named))
    for key, value in leaves(tree):
        if isinstance(value, str) and ("://" in value or "::" in value) and (key, value) not in by_user:
            raise ValueError(
                f"{path} came with the checkpoint and reads {key}={value!r}. Locations on other machines are "
                f"used only where you name them: --config {path} if you trust all of it, or other data by --dataset "
                "and data.arguments."
            )
