"""What the verbs have in common: their options, and how they end."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, get_type_hints

import typer


# What a user can mend: values, files, connections, a package that a verb needs.
_MENDABLE = (ValueError, OSError, ModuleNotFoundError)


class DType(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class CheckpointOptions:
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint or of a run, or the id of one on the Hub.")]
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the Hub.")] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python files that the checkpoint brings. Checkpoints of this package need it not.",
        ),
    ] = False


@dataclass
class ComputeOptions:
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; the best there is if unset.")] = None
    dtype: Annotated[DType, typer.Option(help="Precision of the weights.")] = DType.float32
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64


@dataclass
class ImageOptions:
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images: files, globs ('photos/**/*.jpg'), folders, Parquet files or a folder of them, the id of a "
            "data set on the Hub (streamed), or id:split for a split of it, or - for paths on stdin, one a line.",
        ),
    ]
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.")] = None
    split: Annotated[str, typer.Option(help="Of a data set on the Hub, where its id names none.")] = "train"
    image_column: Annotated[str, typer.Option(help="Of Parquet files and data sets.")] = "image"
    max_unreadable_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Broken images are named and left out; with more of them than this share, the verb ends with 1.",
        ),
    ] = 0.01


MapsOption = Annotated[
    Path | None,
    typer.Option("--map", help="Folder for a picture of each image: where the surprise sits, patch by patch."),
]


def verb(function: Callable) -> Callable:
    """
    Makes a command of a function: every field of parameters that are dataclasses becomes an option, and what a user can
    mend becomes one line on stderr and exit code 1 (2: called wrongly, 130: interrupted).
    """
    hints = get_type_hints(function, include_extras=True)
    parameters, groups = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if is_dataclass(kind):
            groups[name] = kind
            members = [(field.name, field.type, field.default) for field in fields(kind)]
        else:
            members = [(name, kind, parameter.default)]
        for member, annotation, default in members:
            default = default if isinstance(default, (str, int, float, bool, type(None))) else inspect.Parameter.empty
            of_command = inspect.Parameter(
                member, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            parameters.append(of_command)

    @wraps(function)
    def run(**values):
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        try:
            return function(**values)
        except BrokenPipeError:  # `| head` has seen enough
            raise
        except _MENDABLE as error:
            say("error: " + printable(str(error), keep="\n"))
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(130) from None

    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # ty: ignore[missing-attribute]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def say(line: str) -> None:
    """What is not a result: a line on stderr, between two states of a progress bar if need be."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def printable(text: str, keep: str = "") -> str:
    """Text that any terminal and file can take: bytes that are no UTF-8 and control characters are replaced."""
    return "".join(char if char.isprintable() or char in keep else "\N{REPLACEMENT CHARACTER}" for char in text)


def require(module: str, extra: str = "commands"):
    """
    A module that the package does not install by itself.

    Raises:
        ModuleNotFoundError: says which extra brings it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"This needs {error.name}; install it by: pip install 'modeling-hybrid[{extra}]'"
        ) from error
