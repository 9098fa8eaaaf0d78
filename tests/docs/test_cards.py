"""Model cards and published comparisons: their snippets run, and no value in them is typed by hand."""

import json
import re
import shutil

import pytest
from documents import OVERRIDES, ROOT, blocks
from huggingface_hub import ModelCard

from modeling_hybrid import HybridForPreTraining
from training import evaluate
from training.comparison.arms import ARMS, HYBRID
from training.comparison.table import table
from training.config import load_config
from training.reports import model_card


PUBLISHED = sorted((ROOT / "model_cards").glob("*/evaluation.json"))
COMPARED = sorted((ROOT / "model_cards").glob("*/comparison/comparison.json"))


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[.*?\]\((.*?)\)", text, flags=re.DOTALL)


def test_card_snippet_runs(run_folder, run_as_user):
    (snippet,) = blocks((run_folder / "README.md").read_text(), "python")
    run_as_user(f"model_id = {str(run_folder / 'model')!r}\n{snippet}")


def test_card_says_what_the_evaluation_found(run_folder):
    card = (run_folder / "README.md").read_text()
    results = json.loads((run_folder / "evaluation.json").read_text())
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "image-feature-extraction",
        "apache-2.0",
    )
    by_name = {result.metric_name: result.metric_value for result in data.eval_results}
    assert by_name["linear probe accuracy"] == pytest.approx(results["linear_accuracy"], abs=1e-4)
    assert by_name["bits per dimension"] == pytest.approx(results["bits_per_dim"], abs=1e-4)
    assert f"{results['pixel_linear_accuracy']:.3f}" in card
    assert results["command"] in card
    assert len(pictures(card)) >= 3
    for picture in pictures(card):
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
    arguments = [run_folder / "model", "--config", ROOT / "training/configs/digits.yaml", "--output-dir", tmp_path]
    arguments += [*OVERRIDES, "evaluation.suite=[discrimination,likelihood,out_of_distribution]"]
    assert evaluate.main(list(map(str, arguments))) == 0
    first = json.loads((run_folder / "evaluation.json").read_text())
    second = json.loads((tmp_path / "evaluation.json").read_text())
    for key in ("linear_accuracy", "bits_per_dim", "ood_auroc", "pixel_knn_accuracy"):
        assert second[key] == pytest.approx(first[key], abs=1e-6), key


def test_evaluate_refuses_what_is_no_checkpoint(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error:") and "--config" in said


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_card_is_what_its_evaluation_gives(published, tmp_path):
    """Writing it anew from its evaluation.json changes nothing."""
    folder = published.parent
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = load_config(ROOT / f"training/configs/{folder.name}.yaml")
    model_card.write(tmp_path, tmp_path / "checkpoint" / "elsewhere", config)
    text = (tmp_path / "README.md").read_text()
    assert text == (folder / "README.md").read_text()
    for picture in pictures(text):
        assert (folder / picture).exists(), picture


@pytest.mark.parametrize("published", COMPARED, ids=lambda path: path.parents[1].name)
def test_published_comparison_is_what_its_runs_gave(published):
    comparison = json.loads(published.read_text())
    written = (published.parent / "table.md").read_text().strip()
    assert table(comparison, {name: arm.title for name, arm in ARMS.items()}, HYBRID) == written
    name = comparison["config"].removeprefix("training/configs/").removesuffix(".yaml")
    assert name == published.parents[1].name
