"""Model cards and published comparisons: their snippets run, and no value in them is typed by hand."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from documents import OVERRIDES, ROOT, blocks
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.levels import levels_to_pixels
from training import evaluate
from training.comparison.arms import ARMS, HYBRID, Contest, plan
from training.comparison.table import table
from training.config import PretrainConfig, differences, load_config
from training.data.splits import load_splits
from training.reports import model_card


PUBLISHED = sorted((ROOT / "model_cards").glob("*/evaluation.json"))
RELEASED = sorted(path.parent for path in (ROOT / "model_cards").glob("*/model.safetensors"))
COMPARED = sorted((ROOT / "model_cards").glob("*/comparison*/comparison.json"))


def config_of(command: str) -> PretrainConfig:
    """Of the recipe as it is now, with the overrides of the command."""
    _, _, module, path, *overrides = shlex.split(command)
    assert module == "training.pretrain", command
    return load_config(ROOT / path, overrides)


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


@pytest.mark.slow
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
    config = config_of(json.loads(published.read_text())["command"])
    model_card.write(tmp_path, tmp_path / "checkpoint" / "elsewhere", config)
    text = (tmp_path / "README.md").read_text()
    assert text == (folder / "README.md").read_text()
    for picture in pictures(text):
        assert (folder / picture).exists(), picture


@pytest.mark.parametrize("folder", RELEASED, ids=lambda path: path.name)
@torch.no_grad()
def test_released_checkpoint_embeds_scores_and_generates(folder):
    assert (folder / "model.safetensors").stat().st_size < 4 * 10**6
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    images = processor.codes_to_images(model.generate(batch_size=8))
    inputs = processor(images, return_tensors="pt")
    assert AutoModel.from_pretrained(folder).eval()(**inputs).pooler_output.shape == (8, model.config.pooled_size)
    # What it draws it finds far likelier than noise.
    noise = model.bits_per_dim(torch.rand_like(inputs.pixel_values) * 2 - 1)
    assert model.bits_per_dim(**inputs).mean() < 0.7 * noise.mean()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    config = config_of(evaluation["command"])
    assert evaluation["num_parameters"] == HybridForPreTraining(config.model_config()).num_parameters()
    if config.data.dataset == "digits":  # the only images that are always there
        levels = load_splits(config.data, model.config).test.all_levels()
        bits = model.bits_per_dim(levels_to_pixels(levels, model.config.num_levels)).mean().item()
        assert bits == pytest.approx(evaluation["bits_per_dim"], abs=1e-4)


@pytest.mark.parametrize("published", COMPARED, ids=lambda path: path.parents[1].name)
def test_published_comparison_is_what_its_runs_gave(published):
    comparison = json.loads(published.read_text())
    written = (published.parent / "table.md").read_text().strip()
    assert table(comparison, {name: arm.title for name, arm in ARMS.items()}, HYBRID) == written
    assert Path(comparison["config"]).stem == published.parents[1].name


@pytest.mark.parametrize("published", COMPARED, ids=lambda path: path.parents[1].name)
def test_published_commands_give_the_models_that_were_compared(published):
    """The recipe as it is now, with the overrides of the command: as many parameters, and every value of the arm."""
    comparison = json.loads(published.read_text())
    for name, runs in comparison["arms"].items():
        for run in runs:
            config, (_, _, _, path, *overrides) = config_of(run["command"]), shlex.split(run["command"])
            with torch.device("meta"):
                model = HybridForPreTraining(config.model_config())
            assert config.seed == run["seed"]
            assert model.num_parameters(only_trainable=True) == run["num_parameters"], run["command"]
            contest = Contest(
                ROOT / path, overrides, 1, "steps", jobs=1, grid=[], max_points=None, weights=[], output_dir=ROOT
            )
            planned = plan(contest, name, (), config.optimization.num_steps, config.seed).load_config()
            assert config.model_config().to_dict() == planned.model_config().to_dict(), run["command"]
            changed = [key for key in differences(config, planned) if not key.startswith("model.")]
            assert changed == ["output_dir"], run["command"]


def test_every_published_look_at_a_test_split_is_in_the_log():
    evaluations = [json.loads(path.read_text()) for path in PUBLISHED]
    for path in COMPARED:
        comparison = json.loads(path.read_text())
        evaluations += [run for runs in comparison["arms"].values() for run in runs] + comparison["weights"]
    log = (ROOT / "training/LOG.md").read_text()
    for evaluation in evaluations:
        look = evaluation.get("looked_at", {"split": None})
        name = Path(look.get("dataset", "")).name
        if look["split"] == "test" and name not in ("digits", "font_glyphs_28", "noto_emoji_32"):
            assert f"| {look['date']} | {name} |" in log, f"training/LOG.md does not list this look: {look}"
