"""What README and model card show is run as it stands, and says what is true."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_hybrid import (
    NAMED_SIZES,
    HybridConfig,
    HybridForImageClassification,
    HybridForPreTraining,
    HybridImageProcessor,
)
from training.comparison.arms import ARMS, HYBRID
from training.comparison.table import table
from training.config import load_config
from training.data.splits import load_splits
from training.evaluation.suite import evaluate_run
from training.reports import model_card


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """`runs/digits` of an untrained model, evaluated: a folder like that of the README's first command."""
    root = tmp_path_factory.mktemp("clone")
    folder = root / "runs" / "digits"
    config = load_config(
        ROOT / "training/configs/digits.yaml",
        [f"output_dir={folder}", "evaluation.max_images=200", "evaluation.num_samples=4", "evaluation.num_draws=2"],
    )
    torch.manual_seed(0)
    model = HybridForPreTraining(config.model_config())
    model.save_pretrained(folder / "model")
    image_processor = HybridImageProcessor.from_config(model.config)
    image_processor.save_pretrained(folder / "model")
    names = {str(i): i for i in range(10)}
    classifier = HybridForImageClassification.from_pretrained(
        folder / "model", label2id=names, id2label={i: name for name, i in names.items()}
    )
    for part in (classifier, image_processor):
        part.save_pretrained(folder / "finetuned")
    (root / "training").symlink_to(ROOT / "training")
    splits = load_splits(config.data, model.config, max_images=100)
    command = "python -m training.pretrain training/configs/digits.yaml"
    evaluate_run(folder / "model", splits, config, folder, command, train_seconds=1.0)
    return folder


def run_python(code: str, folder: Path) -> None:
    """Run `code` as a new user would: in a process of its own, from `folder`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_readme_snippets_run(run_folder):
    checks = (
        "assert features.shape == (8, 256) and len(samples) == 16 and bits_per_dim.shape == (8,)"
        " and scores.shape == scores_of_noise.shape == (8,)",
        "assert loss.shape == () and loss > 0 and {'centre', 'effective_rank', 'alignment'} <= telemetry.keys()",
        "assert found == {'auroc': 1.0, 'fpr95': 0.0} and 0 <= accuracy['accuracy'] <= 1",
    )
    for snippet, check in zip(blocks(README, "python"), checks, strict=True):
        run_python(f"{snippet}\n{check}", run_folder.parent.parent)


def test_card_snippets_run_and_figures_come_from_the_evaluation(run_folder):
    card = (run_folder / "README.md").read_text()
    results = json.loads((run_folder / "evaluation.json").read_text())
    (snippet,) = blocks(card, "python")
    run_python(f"model_id = {str(run_folder / 'model')!r}\n{snippet}", run_folder)

    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "image-feature-extraction",
        "apache-2.0",
    )
    by_name = {result.metric_name: result.metric_value for result in data.eval_results}
    assert by_name["linear probe accuracy"] == pytest.approx(results["linear_accuracy"], abs=1e-4)
    assert by_name["bits per dimension"] == pytest.approx(results["bits_per_dim"], abs=1e-4)
    assert f"{results['pixel_linear_accuracy']:.4f}" in card
    assert results["command"] in card
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card, flags=re.DOTALL):
        assert (run_folder / picture).exists() and (run_folder / "model" / picture).exists()


def test_evaluation_file_has_the_keys_other_tools_rely_on(run_folder):
    results = json.loads((run_folder / "evaluation.json").read_text())
    flat = (
        "linear_accuracy knn_accuracy few_shot_accuracy pixel_linear_accuracy pixel_knn_accuracy "
        "pixel_few_shot_accuracy bits_per_dim ood_auroc ood_auroc_likelihood ood_auroc_feature num_parameters "
        "train_seconds seed"
    )
    for key in flat.split():
        assert isinstance(results[key], int | float), key
    config = load_config(ROOT / "training/configs/digits.yaml")
    assert results["num_parameters"] == HybridForPreTraining(config.model_config()).num_parameters()
    assert len(results["ood_auroc_by_set"]) >= 6


def test_evaluate_command_repeats_the_evaluation(run_folder, tmp_path):
    command = [sys.executable, "-m", "training.evaluate", run_folder / "model", "--config"]
    command += [ROOT / "training/configs/digits.yaml", "--output-dir", tmp_path, "evaluation.max_images=200"]
    command += ["evaluation.num_samples=4", "evaluation.num_draws=2"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = json.loads((run_folder / "evaluation.json").read_text())
    second = json.loads((tmp_path / "evaluation.json").read_text())
    for key in ("linear_accuracy", "bits_per_dim", "ood_auroc", "pixel_knn_accuracy"):
        assert second[key] == pytest.approx(first[key], abs=1e-6), key


def test_evaluate_refuses_what_is_no_checkpoint(tmp_path):
    command = [sys.executable, "-m", "training.evaluate", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error:" in done.stderr and "--config" in done.stderr and "Traceback" not in done.stderr


def test_readme_commands_are_the_ones_ci_runs():
    commands = "\n".join(blocks(README, "bash"))
    ci = (ROOT / ".ci/run").read_text()
    install, test = next(line for line in commands.splitlines() if line.endswith("&& pytest")).split(" && ")
    assert install in ci and f"\n{test}\n" in ci


def test_readme_lists_the_files_that_exist():
    (tree,) = [block for block in blocks(README, "") if block.startswith("modeling_hybrid/")]
    # The folder that the entries of each indentation lie in.
    folders, listed = {0: ""}, set()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        names = [name for name in re.split(r"\s{2,}", line.strip()) if re.fullmatch(r"[\w.]+/?", name)]
        listed |= {folders[indent] + name for name in names}
        if names[0].endswith("/"):
            folders[indent + 2] = folders[indent] + names[0]
    for path in listed:
        assert (ROOT / path).exists(), path
    existing = {
        f"{top}/{path.name}{'/' if path.is_dir() else ''}"
        for top in ("modeling_hybrid", "training")
        for path in (ROOT / top).iterdir()
        if not path.name.startswith("__") and path.name != "version.py"
    }
    assert existing <= listed


def test_readme_parameter_counts():
    for size in NAMED_SIZES:
        with torch.device("meta"):
            model = HybridForPreTraining(HybridConfig.from_size(size))
        total, encoder = model.num_parameters() / 1e6, model.encoder.num_parameters() / 1e6
        row = next(line for line in README.splitlines() if line.startswith(f"| `{size}`"))
        stated = [float(value) for value in re.findall(r"([\d.]+) M", row)]
        assert stated == pytest.approx([total, encoder], rel=0.03), size


def test_every_configuration_is_valid():
    for path in (ROOT / "training/configs").glob("*.yaml"):
        load_config(path, ["data.dataset=digits"])
        assert "python -m training.pretrain" in path.read_text()


@pytest.mark.parametrize("published", [path.parent for path in (ROOT / "model_cards").glob("*/evaluation.json")])
def test_published_card_is_what_its_evaluation_gives(published, tmp_path):
    """No figure in a published card is typed by hand: writing it anew from its evaluation.json changes nothing."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    config = load_config(ROOT / f"training/configs/{published.name}.yaml")
    model_card.write(tmp_path, tmp_path / "checkpoint" / "elsewhere", config)
    text = (tmp_path / "README.md").read_text()
    assert text == (published / "README.md").read_text()
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text, flags=re.DOTALL):
        assert (published / picture).exists(), picture


@pytest.mark.parametrize(
    "published", sorted((ROOT / "model_cards").glob("*/comparison")), ids=lambda path: path.parent.name
)
def test_published_comparison_is_what_its_runs_gave(published):
    """Neither the table nor the rows of it in the README are typed by hand."""
    comparison = json.loads((published / "comparison.json").read_text())
    written = (published / "table.md").read_text().strip()
    assert table(comparison, {name: arm.title for name, arm in ARMS.items()}, HYBRID) == written
    name = comparison["config"].removeprefix("training/configs/").removesuffix(".yaml")
    assert name == published.parent.name
    quoted = README.split(f"`{comparison['command']}`")[1].split("\n\n")[1].splitlines()
    assert len(quoted) > 5 and set(quoted) <= set(written.splitlines())
