"""`hybrid demo`: a page to play with a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import load, resolve
from .collection import Collection
from .detect import Threshold
from .options import CheckpointOptions, ComputeOptions, require, say, verb


@verb
def demo(
    checkpoint: CheckpointOptions,
    compute: ComputeOptions,
    collection: Annotated[
        Path | None, typer.Option(help="Folder that hybrid embed wrote with this checkpoint, for nearest images.")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
):
    """
    Serve a page on this machine: upload or draw an image, and see its nearest neighbours, where it surprises the model,
    the verdict of a fitted detector, completions and samples. It shows what the checkpoint can do. Needs the extra
    demo.
    """
    serve(checkpoint, compute, collection, host, port)


def serve(
    checkpoint: CheckpointOptions, compute: ComputeOptions, collection: Path | None, host: str, port: int
) -> None:
    """
    Until the process is told to end.

    Raises:
        ModuleNotFoundError, OSError, ValueError: what a user can mend, as in every verb.
    """
    require("gradio", "demo")
    embedded = None if collection is None else Collection(collection)
    if embedded is not None:
        embedded.require_whole()
    model, processor = load(checkpoint, compute)
    if embedded is not None:
        embedded.require_made_by(model, f"{checkpoint.checkpoint} in {compute.dtype.value}")
    from .playground import Answers, build, launch

    try:
        threshold = Threshold.read(resolve(checkpoint), checkpoint.revision)
    except ValueError:
        threshold = None
    answers = Answers(model, processor, threshold, embedded)
    lacking = [
        (answers.can_score, "a likelihood: no surprise, completions and samples"),
        (answers.can_detect, "a fitted detector (hybrid detect fit): no verdict"),
        (embedded is not None, "a --collection (hybrid embed): no neighbours"),
    ]
    for is_there, what in lacking:
        if not is_there:
            say(f"Without {what}.")
    say(f"http://{host}:{port}  (Ctrl+C ends it)")
    launch(build(answers, checkpoint.checkpoint), server_name=host, server_port=port, quiet=True)
