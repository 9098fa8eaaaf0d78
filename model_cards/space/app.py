"""
A Space of the Hub: the page of `hybrid demo` for one checkpoint. Settings are environment variables of the Space.

    CHECKPOINT  folder beside this file, or id on the Hub; `model` if unset.
    REVISION    commit, tag or branch of an id on the Hub.
    COLLECTION  folder that `hybrid embed` wrote with this checkpoint, for nearest images; none if unset.
"""

import os
from pathlib import Path

from modeling_hybrid.commands.demo import serve
from modeling_hybrid.commands.options import CheckpointOptions, ComputeOptions


def setting(name: str, default: str | None = None) -> str | None:
    return os.environ.get(name) or default


if __name__ == "__main__":
    collection = setting("COLLECTION")
    serve(
        CheckpointOptions(setting("CHECKPOINT", "model"), setting("REVISION")),
        ComputeOptions(),
        Path(collection) if collection else None,
        host="0.0.0.0",
        port=int(setting("GRADIO_SERVER_PORT", "7860")),
    )
