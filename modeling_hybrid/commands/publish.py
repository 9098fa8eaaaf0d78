"""`hybrid publish`: a checkpoint to the Hub, as a whole and with nothing else."""

import re
from pathlib import Path
from typing import Annotated

import typer

from .detect import THRESHOLD_FILE
from .options import printable, say, verb
from .results import read_json


# A run leaves more behind than its model: states, logs, configurations. What is not named here stays at home.
_SUFFIXES = (".safetensors", ".py", ".md", ".png")
_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
    # SENTENCE_TRANSFORMERS of the configuration, which would load torch.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    THRESHOLD_FILE,
)
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


@verb
def publish(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint or of a run.")],
    repo_id: Annotated[str, typer.Argument(help="On the Hub: name, or owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody can see it; private if unset.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; if unset, only list what would go.")] = False,
):
    """Publish model, processor, card and figures on the Hub. Without --yes, list what would go, and send nothing."""
    files = collect(checkpoint)
    visibility = "public" if public else "private"
    sizes = {name: path.stat().st_size for name, path in files.items()}
    for name, size in sizes.items():
        typer.echo(f"{size:>14,}  {printable(name)}")
    typer.echo(f"{sum(sizes.values()):>14,}  bytes in {len(files)} files, {visibility}: {printable(repo_id)}")
    if "README.md" not in files:
        say("There is no card: neither the checkpoint nor its run holds a README.md.")
    if not yes:
        say("Nothing was sent; --yes sends it.")
        return
    url, repo_id = push(files, repo_id, public)
    typer.echo(url)
    typer.echo(f'AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)')


def collect(checkpoint: Path) -> dict[str, Path]:
    """
    What goes to the Hub, by its path there; card and figures of a run where the checkpoint has none of its own.

    Raises:
        FileNotFoundError: no checkpoint, no weights, no processor, or code that a load needs is missing.
        ValueError: a file that is damaged, or holds a token of the Hub.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint} is no folder; expected that of a checkpoint or of a run.")
    # A run folder stands for its model/.
    found = checkpoint if (checkpoint / "config.json").is_file() else checkpoint / "model"
    if not (found / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint: it holds no config.json, nor does a folder model/ in it."
        )
    files = _listed(found)
    run = found.resolve().parent
    if "README.md" not in files and found.name == "model" and (run / "README.md").is_file():
        files |= {name: path for name, path in _listed(run).items() if name == "README.md" or name.endswith(".png")}
    if not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(f"{found} holds no weights in safetensors; save the model by save_pretrained.")
    if "preprocessor_config.json" not in files:
        raise FileNotFoundError(f"{found} holds no preprocessor_config.json; save the image processor there as well.")
    _require_code(found, files)
    for name, path in files.items():
        if not name.endswith((".safetensors", ".png")) and _TOKEN.search(path.read_bytes()):
            raise ValueError(f"{path} seems to hold a token of the Hub; take it out, and revoke it if others saw it.")
    return files


def _listed(folder: Path) -> dict[str, Path]:
    """
    Files of a folder, and the pictures of its card; no links, which may lead anywhere, but those of a snapshot in the
    cache of the Hub's client to its own blobs.
    """
    blobs = folder.absolute().parent.parent / "blobs" if folder.absolute().parent.name == "snapshots" else None

    def is_own(path: Path) -> bool:
        links = [part for part in (path, path.parent) if part != folder and part.is_symlink()]
        return not links or (links == [path] and blobs is not None and path.resolve().parent == blobs.resolve())

    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted((*folder.iterdir(), *folder.glob("figures/*.png"), *folder.glob("1_Pooling/config.json")))
        if (path.suffix in _SUFFIXES or path.relative_to(folder).as_posix() in _JSON_FILES)
        and path.is_file()
        and is_own(path)
    }


def _require_code(folder: Path, files: dict[str, Path]) -> None:
    """All modules that `trust_remote_code` loads, and those that they import."""
    from transformers.dynamic_module_utils import get_relative_imports

    def references(value) -> list[str]:
        if isinstance(value, str):
            return [value]
        values = value.values() if isinstance(value, dict) else value or []
        return [one for member in values for one in references(member)]

    waiting = {}
    for name in ("config.json", "preprocessor_config.json"):
        for reference in references(read_json(files[name]).get("auto_map")):
            waiting[reference.rpartition(".")[0] + ".py"] = f"auto_map of {name}"
    if not waiting:
        raise FileNotFoundError(
            f"{folder}/config.json has no auto_map: nobody could load it with trust_remote_code. Load model and "
            "processor in Python and save them elsewhere by save_pretrained, which adds the code and the map."
        )
    seen = set()
    while waiting:
        module, needed_by = waiting.popitem()
        if module not in files:
            raise FileNotFoundError(
                f"{folder} holds no {module}, which {needed_by} needs; save the model again by save_pretrained, which "
                "brings its code."
            )
        seen.add(module)
        imported = {f"{name}.py" for name in get_relative_imports(files[module])}
        waiting |= dict.fromkeys(imported - seen, module)


def push(files: dict[str, Path], repo_id: str, public: bool) -> tuple[str, str]:
    """
    One commit, so that nobody loads half a model; what an interrupted one has uploaded is not sent again.

    Returns:
        Address and full id of the repository.

    Raises:
        ValueError: the repository is public, and `public` was not asked for, or the other way round.
        OSError: no connection, no rights, or nobody is logged in.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    try:
        url = api.create_repo(repo_id, private=not public, exist_ok=True)
        if bool(api.repo_info(url.repo_id).private) is public:
            there, option = ("private", "leave out --public") if public else ("public", "add --public")
            raise ValueError(f"{url.repo_id} is there already, and {there}; {option}, or choose another id.")
        api.create_commit(url.repo_id, operations, commit_message="Publish a checkpoint")
    # OSError, and that of the HTTP library, which depends on the version.
    except HfHubHTTPError.__bases__ as error:  # ty: ignore[invalid-exception-caught]
        told = _TOKEN.sub(b"hf_...", str(error).encode()).decode()
        raise OSError(f"{repo_id} was not published; once mended, the same command goes on. {told}") from error
    return str(url), url.repo_id
