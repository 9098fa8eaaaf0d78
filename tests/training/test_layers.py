"""Imports of `training` go one way: what comes later may use what comes before it, and there are no circles."""

import ast
from pathlib import Path


TRAINING = Path(__file__).parents[2] / "training"
# From the ground up. Files of the top level that are not named are commands, which may use everything.
LAYERS = [
    "command",
    "disk",
    "hardware",
    "plain_files",
    "metrics",
    "config",
    "data",
    "embedding",
    "optimization",
    "reports",
    "finetuning",
    "evaluation",
    "pretraining",
    "comparison",
    "benchmarks",
    "image_sets",
    "commands",
]


def layer_of(path: Path) -> str:
    name = path.relative_to(TRAINING).parts[0].removesuffix(".py")
    return name if name in LAYERS else "commands"


def imported(path: Path) -> list[Path]:
    """The files of `training` that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                target = folder.joinpath(*name.split("."))
                target = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
                # `from .. import pictures` names a file of the folder.
                found += [target] if node.module else [folder / f"{name}.py"]
                for alias in node.names if node.module and target.name == "__init__.py" else ():
                    found.append(target.parent / f"{alias.name}.py")
    return [target for target in found if target.exists()]


FILES = [path for path in TRAINING.rglob("*.py") if "runs" not in path.parts]


def test_every_folder_has_its_layer():
    folders = {path.name for path in TRAINING.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders - {"__pycache__"} <= set(LAYERS)


def test_no_import_goes_upwards():
    for path in FILES:
        for target in imported(path):
            assert LAYERS.index(layer_of(target)) <= LAYERS.index(layer_of(path)), f"{path} imports {target}"


def test_there_are_no_circles():
    imports = {path: [target for target in imported(path) if target != path] for path in FILES}
    left = dict(imports)
    while left:
        free = [path for path, targets in left.items() if not any(target in left for target in targets)]
        assert free, f"a circle among {[str(path.relative_to(TRAINING)) for path in left]}"
        for path in free:
            del left[path]
