"""The comparison tunes every arm alike, spends equal budgets, repeats nothing, and its table says what runs found."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import SMALL

from training.compare import main
from training.comparison import budget as budgets
from training.comparison.arms import ARMS, grid_points, plan, weights_of
from training.comparison.budget import flops_per_step, seconds_per_step
from training.comparison.sweep import PlannedRun
from training.comparison.table import table
from training.config import SUITE, load_config
from training.evaluation import judge


DIGITS = Path(__file__).parents[3] / "training/configs/digits.yaml"
NUM_IMAGES = 200


class FakeRuns:
    """Instead of a training: writes what a run of these values would be expected to find, and counts the runs."""

    def __init__(self):
        self.executed: list[PlannedRun] = []
        self.fail = None

    def __call__(self, run: PlannedRun, num_threads: int) -> str | None:
        if run.is_finished:
            return None
        if self.fail and self.fail in str(run.folder):
            return f"{run.folder} failed"
        self.executed.append(run)
        config = run.load_config()
        model, rate = config.model_config(), config.optimization.learning_rate
        run.folder.mkdir(parents=True)
        # Contrastive learning likes a high rate, a likelihood a low one, and accuracy gains more than bits lose.
        results = {"train_seconds": 1.0, "seed": config.seed, "hardware": "CPU", "num_images": {"test": NUM_IMAGES}}
        per_image = {"groups": np.arange(NUM_IMAGES) // 4}
        generator = np.random.default_rng(config.seed)
        accuracy = 0.5 + 0.3 * (model.contrastive_weight > 0) + 0.1 * (model.generative_weight > 0)
        correct = generator.random(NUM_IMAGES) < accuracy
        results |= {"validation_linear_accuracy": rate, "validation_few_shot_accuracy": 2 * rate}
        results |= {"linear_accuracy": correct.mean(), "pixel_linear_accuracy": 0.4, "few_shot_accuracy": 0.3}
        per_image["linear_correct"] = correct
        if model.generative_weight > 0:
            bits = 2 + 0.1 * model.contrastive_weight
            results |= {"validation_bits_per_dim": rate, "bits_per_dim": bits}
            per_image["bits_per_dim"] = np.full(NUM_IMAGES, bits)
        (run.folder / "evaluation.json").write_text(json.dumps(results))
        np.savez(run.folder / "per_image.npz", **per_image)
        (run.folder / "README.md").write_text("")
        return None


@pytest.fixture
def fake_runs(monkeypatch) -> FakeRuns:
    runs = FakeRuns()
    monkeypatch.setattr(PlannedRun, "execute", lambda run, num_threads: runs(run, num_threads))
    return runs


def test_arms_are_tuned_alike_and_runs_are_not_repeated(tmp_path, fake_runs, capsys):
    command = [str(DIGITS), "--seeds", "2", "--weights", "0.1", "0.3", "--output-dir", str(tmp_path)]
    grid = ["--grid", "optimization.learning_rate=1e-3,4e-3", "model.pooling=mean,attention"]
    assert main([*command, *grid]) == 0
    # Seed 0 of three arms at four points, then seed 1 at the best one; the weight .3 is that of the configuration.
    assert len(fake_runs.executed) == 3 * 4 + 3 + 1
    assert len({run.folder for run in fake_runs.executed}) == len(fake_runs.executed)

    comparison = json.loads((tmp_path / "comparison.json").read_text())
    best = {name: float(found["chosen"][0].split("=")[1]) for name, found in comparison["tuning"].items()}
    assert best == {"contrastive": 4e-3, "generative": 1e-3, "hybrid": 4e-3}
    for run in fake_runs.executed[12:]:
        config, name = run.load_config(), run.folder.parts[len(tmp_path.parts)]
        assert config.optimization.learning_rate == best[name]
        assert config.optimization.num_steps == load_config(DIGITS).optimization.num_steps
    assert [run["contrastive_weight"] for run in comparison["weights"]] == [0.1, 0.3]
    difference = comparison["hybrid_minus"]["generative"]["bits_per_dim"]
    assert difference["mean"] == pytest.approx(0.03) and difference["low"] == pytest.approx(0.03)
    gain = comparison["hybrid_minus"]["generative"]["linear_accuracy"]
    assert gain["low"] > 0 and "bits_per_dim" not in comparison["hybrid_minus"]["contrastive"]
    assert (tmp_path / "figures" / "pareto.png").stat().st_size > 1000
    assert (tmp_path / "table.md").read_text().strip() in capsys.readouterr().out

    executed = len(fake_runs.executed)
    shutil.rmtree(fake_runs.executed[-2].folder)
    assert main([*command, *grid]) == 0
    assert fake_runs.executed[executed:] == [fake_runs.executed[executed - 2]]


def test_no_setting_turns_an_arm_into_another(tmp_path):
    recipe = ["model.encoder_attention=two_pass", "model.contrastive_weight=0.7", "optimization.separate_moments=true"]
    recipe += ["model.pooling=contextual"]
    options = Namespace(config=DIGITS, overrides=recipe, output_dir=tmp_path)
    point = ("model.generative_weight=2", "model.contrastive_weight=0.5")
    found = {name: plan(options, name, point, num_steps=3, seed=0).load_config() for name in ARMS}
    models = {name: config.model_config() for name, config in found.items()}
    weights = {name: (model.contrastive_weight, model.generative_weight) for name, model in models.items()}
    assert weights == {"contrastive": (0.5, 0), "generative": (0, 2), "hybrid": (0.5, 2)}
    attention = {name: model.encoder_attention for name, model in models.items()}
    assert attention == {"contrastive": "bidirectional", "generative": "causal", "hybrid": "two_pass"}
    pooling = {name: model.pooling for name, model in models.items()}
    assert pooling == {"contrastive": "contextual", "generative": "regional", "hybrid": "contextual"}
    separate = {name: config.optimization.separate_moments for name, config in found.items()}
    assert separate == {"contrastive": False, "generative": False, "hybrid": True}


def test_a_failed_run_is_told_and_the_rest_is_kept(tmp_path, fake_runs, capsys):
    command = [str(DIGITS), "--seeds", "1", "--output-dir", str(tmp_path), "--weights"]
    fake_runs.fail = "hybrid/learning_rate=0.003"
    assert main(command) == 1
    said = capsys.readouterr()
    assert "hybrid/learning_rate=0.003/seed-0 failed" in said.out and "goes on from here" in said.err
    executed, fake_runs.fail = len(fake_runs.executed), None
    assert main(command) == 0
    assert [run.folder.parent.name for run in fake_runs.executed[executed:]] == ["learning_rate=0.003"]


@pytest.mark.parametrize("budget", ["flops", "seconds"])
def test_equal_budgets_give_the_cheaper_arm_more_steps(tmp_path, fake_runs, monkeypatch, budget):
    costs = {"contrastive": 1.0, "generative": 2.0, "hybrid": 4.0}

    def measure(config):
        model = config.model_config()
        return costs[
            "generative" if model.contrastive_weight == 0 else "hybrid" if model.generative_weight else "contrastive"
        ]

    monkeypatch.setattr(budgets, f"{budget}_per_step", measure)
    grid = ["--grid", "model.pooling=mean"]
    command = [str(DIGITS), "--seeds", "1", "--budget", budget, "--output-dir", str(tmp_path), *grid, "--weights"]
    assert main(command) == 0
    steps = {run.folder.parts[-3]: run.load_config().optimization.num_steps for run in fake_runs.executed}
    assert steps == {"contrastive": 4800, "generative": 2400, "hybrid": 1200}
    if budget == "seconds":  # what was measured once holds for what is run later
        costs["hybrid"] = 8.0
        assert main([*command[:2], "2", *command[3:]]) == 0
        later = fake_runs.executed[3:]
        assert sorted(run.load_config().optimization.num_steps for run in later) == [1200, 2400, 4800]


def test_costs_are_those_of_the_work():
    def config(*overrides):
        return load_config(DIGITS, [*(f"{key}={value}" for key, value in SMALL.items()), *overrides])

    hybrid, contrastive = config(), config("model.generative_weight=0", "model.encoder_attention=bidirectional")
    assert flops_per_step(hybrid) == flops_per_step(hybrid) > flops_per_step(contrastive) > 0
    assert flops_per_step(config("optimization.batch_size=64")) == pytest.approx(2 * flops_per_step(hybrid), rel=0.1)
    assert seconds_per_step(hybrid, num_repeats=1) > 0


def test_the_grid_and_the_weights():
    config = load_config(DIGITS)
    assert weights_of(Namespace(weights=None), config) == [0.1, 0.9]
    assert weights_of(Namespace(weights=[]), config) == []
    assert grid_points([], config) == [(f"optimization.learning_rate={rate}",) for rate in ("0.0015", "0.003", "0.006")]
    assert grid_points(["a=1,2", "b=x"], config) == [("a=1", "b=x"), ("a=2", "b=x")]
    with pytest.raises(ValueError, match="'pooling'"):
        grid_points(["pooling"], config)


def test_mistakes_are_told_before_the_first_run(tmp_path, fake_runs, capsys):
    for arguments, said in (
        (["nowhere.yaml"], "nowhere.yaml"),
        ([str(DIGITS), "--grid", "model.poling=mean,attention"], "'pooling'"),
        ([str(DIGITS), "--weights", "-1"], "contrastive_weight"),
        ([str(DIGITS), "--set", "optimization.num_step=3"], "'num_steps'"),
        ([str(DIGITS), "--seeds", "0"], "--seeds 0"),
    ):
        assert main([*arguments, "--output-dir", str(tmp_path / "runs")]) == 1
        assert said in capsys.readouterr().err
    assert not fake_runs.executed


def test_the_table_of_real_runs(tmp_path, monkeypatch, in_this_process):
    """Three trained arms, evaluated by the whole suite."""
    monkeypatch.setattr(judge, "NUM_STEPS", 10)
    small = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = ["--seeds", "1", "--grid", "model.pooling=mean", "--weights"]
    small += ["optimization.num_steps=2", f"evaluation.suite=[{','.join(SUITE)}]", "evaluation.num_scored_samples=8"]
    assert main([str(DIGITS), *arguments, "--output-dir", str(tmp_path), "--set", *small]) == 0
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    text = table(comparison, {name: arm.title for name, arm in ARMS.items()}, "hybrid")
    assert text == (tmp_path / "table.md").read_text().strip()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    found = {row[1]: row for row in rows}
    run = comparison["arms"]["hybrid"][0]
    assert found["linear probe accuracy"][6] == f"{run['linear_accuracy']:.3f}"
    assert found["linear probe accuracy"][2] == f"{run['pixel_linear_accuracy']:.3f}"
    bits = found["bits per dimension"]
    assert bits[4] == "" and bits[5] and bits[6] and bits[7] == "" and bits[8]
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert pictures == {"pareto.png", "robustness.png", "roc.png", "calibration.png"}
