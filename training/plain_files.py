"""Files that others may have written, read as tensors and plain values: nothing that they hold is ever run."""

import json
import pickle
from pathlib import Path
from typing import Any

from accelerate.utils import load
from safetensors import SafetensorError, safe_open


def read_json(path: Path) -> Any:
    """
    Raises:
        ValueError: the file is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def require_plain(path: Path) -> None:
    """
    Reads as much of a file as tells what it holds: all of a JSON file, no tensor of others. Files of other kinds are
    left alone.

    Raises:
        ValueError: it holds anything but tensors and plain values, or is cut.
    """
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        elif path.suffix in (".bin", ".pkl", ".pt"):
            load(path, map_location="meta", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} holds something else than tensors and plain values, or is cut ({type(error).__name__}); "
            "nothing of it was run"
        ) from None


def require_plain_checkpoint(checkpoint: Path) -> None:
    """
    Of a folder; what is none, such as the name of a checkpoint on the Hub, is left to the client.

    Raises:
        ValueError: weights that are not safetensors, or a damaged file.
    """
    if not checkpoint.is_dir():
        return
    if not any(checkpoint.glob("*.safetensors")):
        raise ValueError(f"{checkpoint} holds no weights as safetensors, the only kind that is read.")
    for path in sorted(checkpoint.glob("*.json")) + sorted(checkpoint.glob("*.safetensors")):
        require_plain(path)
