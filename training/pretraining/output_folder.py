"""The folder of a run: whose it is, and how what lies in it survives a kill at any moment."""

import shutil
from dataclasses import replace
from pathlib import Path

from ..config import PretrainConfig, differences, load_config, save_config
from ..reports.log_lines import parse_line


def open_output_dir(config: PretrainConfig) -> None:
    """
    Create the output folder, or check that it holds an unfinished run with this configuration, which is resumed.

    Raises:
        ValueError: the folder holds another run, a finished one, or other files.
    """
    folder = Path(config.output_dir)
    saved = folder / "config.yaml"
    # How a run was started is not part of what it is: it may be moved, and resumed after it has replaced another.
    config_of_run = replace(config, overwrite=False)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not saved.exists())):
        raise ValueError(f"output_dir={folder} holds files that are not a run's; choose another one.")
    if saved.exists():
        try:
            held = replace(load_config(saved), output_dir=config.output_dir)
        except ValueError as error:
            raise ValueError(
                f"output_dir={folder} holds a config.yaml that is not a run's of this version ({error}); choose "
                "another one."
            ) from error
        mend = "choose another output_dir, or pass overwrite=true to replace it"
        changed = differences(held, config_of_run)
        if config.overwrite:
            shutil.rmtree(folder)
        elif changed:
            raise ValueError(f"output_dir={folder} holds a run with other values of {', '.join(changed)}; {mend}.")
        elif (folder / "README.md").exists():  # the card, which a run writes last
            raise ValueError(f"output_dir={folder} holds a finished run; {mend}.")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config_of_run, saved)


def partial_of(folder: Path) -> Path:
    """Where a folder is written before it takes its place."""
    return folder.with_name(f"{folder.name}.partial")


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
        partial = log.with_name(f"{log.name}.partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(log)
