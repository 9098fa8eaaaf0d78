"""The verbs under one name, and how the process ends."""

import sys
import warnings

import typer

from .curate import curate
from .demo import demo
from .detect import detect
from .embed import embed
from .export import export
from .generate import complete, generate, vary
from .info import info
from .publish import publish
from .score import score
from .search import search


app = typer.Typer(
    name="hybrid",
    epilog="Exit code: 0; 1 after an error that can be mended, told in one line on stderr; 2 when called wrongly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def hybrid():
    """Embed, search, score, detect, curate, generate, export, publish and play with checkpoints of modeling_hybrid."""


for function in (embed, search, score, curate, generate, complete, vary, info, export, publish, demo):
    app.command(function.__name__)(function)
app.add_typer(detect, name="detect")


def main() -> None:
    """The process of a user: nothing on the console that nobody can do anything about."""
    warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    app()
