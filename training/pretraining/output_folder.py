"""The folder of a run: whose it is, and how what lies in it survives a kill at any moment."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ..config import PretrainConfig, differences, load_config, save_config
from ..disk import partial_of, writing, written_whole
from ..reports.log_lines import parse_line


try:
    import fcntl
except ModuleNotFoundError:  # Windows, where no run is locked
    fcntl = None

LOCK = "run.lock"


def open_output_dir(config: PretrainConfig) -> TextIO:
    """
    Create the output folder, or check that it holds an unfinished run with this configuration, which is resumed.

    Returns:
        The lock of the folder, which no other process gets as long as the file is open.

    Raises:
        ValueError: the folder holds another run, a finished one, or other files, or a process is at it.
        OSError: nothing can be written there.
    """
    folder = Path(config.output_dir)
    saved = folder / "config.yaml"
    # How a run was started is not part of what it is: it may be moved, and resumed after it has replaced another.
    config_of_run = replace(config, overwrite=False)
    others = folder.is_dir() and any(path.name not in (LOCK, partial_of(saved).name) for path in folder.iterdir())
    if folder.exists() and (not folder.is_dir() or (others and not saved.exists())):
        raise ValueError(f"output_dir={folder} holds files that are not a run's; choose another one.")
    if saved.exists():
        try:
            held = replace(load_config(saved), output_dir=config.output_dir)
        except ValueError as error:
            raise ValueError(
                f"output_dir={folder} holds a config.yaml that is not a run's of this version ({error}); choose "
                "another one."
            ) from error
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    if saved.exists():
        mend = "choose another output_dir, or pass overwrite=true to replace it"
        changed = differences(held, config_of_run)
        if config.overwrite:
            _remove_all_but(folder / LOCK)
        elif changed:
            raise ValueError(f"output_dir={folder} holds a run with other values of {', '.join(changed)}; {mend}.")
        elif (folder / "README.md").exists():  # the card, which a run writes last
            raise ValueError(f"output_dir={folder} holds a finished run; {mend}.")
    # Whole or not at all: without it nothing can be resumed.
    with written_whole(saved) as partial:
        save_config(config_of_run, partial)
    return lock


def _lock(folder: Path) -> TextIO:
    """The lock of a folder; it ends with the process that holds it, however that ends."""
    file = open(folder / LOCK, "a+")  # noqa: SIM115 (what is returned is the open file)
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise ValueError(
            f"output_dir={folder} is in use by {holder}, which holds {folder / LOCK}; wait for it, end it, or choose "
            f"another output_dir. ({error.strerror})"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _remove_all_but(kept: Path) -> None:
    for path in kept.parent.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != kept:
            path.unlink()


def new_partial(folder: Path) -> Path:
    shutil.rmtree(partial_of(folder), ignore_errors=True)
    partial_of(folder).mkdir()
    return partial_of(folder)


def retired_of(folder: Path) -> Path:
    """Where a folder is moved before another takes its place."""
    return folder.with_name(f"{folder.name}.retired")


def replace_folder(new: Path, old: Path, keep_old: bool = False) -> None:
    """
    Put `new` in the place of `old`. After a kill at any moment, `recover_folder(old)` finds one of them complete.

    Args:
        keep_old: leave the old one under the name of `retired_of`.
    """
    retired = retired_of(old)
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    if not keep_old:
        shutil.rmtree(retired, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a replacement that a kill cut between its two moves."""
    if not folder.exists() and retired_of(folder).exists():
        retired_of(folder).rename(folder)


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of `log` after `step`, which are about to be written again; a kill may have cut the last one."""
    if log.exists():
        lines = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        kept = [line for i, line in enumerate(lines, start=1) if parse_line(line, log, i)["step"] <= step]
        with written_whole(log) as partial:
            partial.write_bytes(b"".join(kept))
