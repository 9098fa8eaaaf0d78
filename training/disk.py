"""Writing: is there room, and what to say where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


# Beside weights and moments: log, pictures, card.
_SMALL_FILES = 50 * 2**20


def require_space(folder: Path, num_bytes: int) -> None:
    """
    Args:
        folder: of a run; what it holds already counts as written.
        num_bytes: of weights and moments, when the folder is fullest.

    Raises:
        ValueError: the disk has no room for them.
    """
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = max(0, num_bytes - written) + _SMALL_FILES, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"output_dir={folder} is on a disk with {_size(free)} free, but the run writes up to {_size(needed)} more; "
            "free some, or choose an output_dir on another disk."
        )


def partial_of(path: Path) -> Path:
    """Where a file or a folder is written before it takes its place."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """
    To be entered while `path`, a file or a folder, is written, at its place or as its [`partial_of`].

    Raises:
        OSError: the disk is full, a file grows beyond its limit, or it may not be written; with the way out.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        # What is half written leaves its room to others.
        partial = partial_of(path)
        with suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        raise OSError(
            f"{path} cannot be written ({error}); {_size(shutil.disk_usage(there).free)} are free there. What was "
            "saved before is whole: free some space, raise the limit on the size of a file (ulimit -f), or see that "
            "you may write there; then the same command goes on."
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """
    Gives a place to write a file at, from which it moves to `path` where that has gone well: what lies there is
    the file before, or the new one, at any moment.

    Raises:
        OSError: as of [`writing`].
    """
    with writing(path):
        yield partial_of(path)
        partial_of(path).replace(path)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
