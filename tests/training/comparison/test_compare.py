"""The comparison tunes every arm alike, spends equal budgets, repeats nothing, and its table says what runs found."""

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import SMALL

from training.compare import main
from training.comparison import budget as budgets
from training.comparison import pictures
from training.comparison.arms import ARMS, Contest, plan, plan_tuning, weights_of
from training.comparison.budget import flops_per_step, seconds_per_step
from training.comparison.sweep import PlannedRun, execute
from training.comparison.table import table
from training.comparison.tuning import grid_points, missing_neighbour, open_ends
from training.config import SUITE, load_config, save_config
from training.evaluation import judge


DIGITS = Path(__file__).parents[3] / "training/configs/digits.yaml"
NUM_IMAGES = 200


class FakeRuns:
    """Instead of a training: writes what a run of these values would be expected to find, and counts the runs."""

    # Contrastive learning likes a high rate, a likelihood a low one, and accuracy gains more than bits lose.
    best_rate = {"contrastive": 8e-3, "generative": 5e-4, "hybrid": 4e-3}
    diverges_above = 1.0

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
        if rate > self.diverges_above:
            save_config(config, run.folder / "config.yaml")
            (run.folder / "diverged").touch()
            return f"{run.folder} diverged"
        loss = abs(math.log2(rate / self.best_rate[arm_of(run)]))
        results = {"validation_linear_accuracy": -loss, "validation_few_shot_accuracy": -loss}
        if model.generative_weight > 0:
            results["validation_bits_per_dim"] = loss
        if config.data.test_split is not None:
            results |= self.look_at_the_test_split(run, config)
        (run.folder / "evaluation.json").write_text(json.dumps(results))
        (run.folder / "README.md").write_text("")
        return None

    def look_at_the_test_split(self, run: PlannedRun, config) -> dict:
        model = config.model_config()
        results = {"train_seconds": 1.0, "seed": config.seed, "hardware": "CPU", "num_images": {"test": NUM_IMAGES}}
        per_image = {"groups": np.arange(NUM_IMAGES) // 4}
        generator = np.random.default_rng(config.seed)
        accuracy = 0.5 + 0.3 * (model.contrastive_weight > 0) + 0.1 * (model.generative_weight > 0)
        correct = generator.random(NUM_IMAGES) < accuracy
        results |= {"linear_accuracy": correct.mean(), "pixel_linear_accuracy": 0.4, "few_shot_accuracy": 0.3}
        results |= {"random_linear_accuracy": 0.5, "random_few_shot_accuracy": 0.3 - 0.01 * config.seed}
        per_image["linear_correct"] = correct
        if model.generative_weight > 0:
            results["bits_per_dim"] = bits = 2 + 0.1 * model.contrastive_weight
            per_image["bits_per_dim"] = np.full(NUM_IMAGES, bits)
        np.savez(run.folder / "per_image.npz", **per_image)
        return results


def arm_of(run: PlannedRun) -> str:
    (name,) = set(run.folder.parts) & set(ARMS)
    return name


@pytest.fixture
def fake_runs(monkeypatch) -> FakeRuns:
    runs = FakeRuns()
    monkeypatch.setattr(pictures, "draw", lambda *_: None)
    monkeypatch.setattr(PlannedRun, "execute", lambda run, num_threads, running: runs(run, num_threads))
    return runs


def contest_of(overrides: list[str], folder: Path) -> Contest:
    return Contest(DIGITS, overrides, 1, "steps", jobs=1, grid=[], max_points=None, weights=[], output_dir=folder)


def comparison_in(folder: Path, budget: str = "steps") -> dict:
    return json.loads((folder / f"equal_{budget}/comparison.json").read_text())


def test_arms_are_tuned_alike_and_runs_are_not_repeated(tmp_path, fake_runs, capsys):
    command = [str(DIGITS), "--seeds", "2", "--weights", "0.1", "0.3", "--output-dir", str(tmp_path)]
    grid = ["--grid", "optimization.learning_rate=5e-4,2e-3,8e-3", "model.pooling=mean,attention", "--max-points", "6"]
    assert main([*command, *grid]) == 0
    # Six points of three arms, then two seeds at the best one; the weight .3 is that of the configuration.
    tuning, reported = fake_runs.executed[:18], fake_runs.executed[18:]
    assert len(reported) == 3 * 2 + 1
    assert len({run.folder for run in fake_runs.executed}) == len(fake_runs.executed)
    for run in tuning:
        config = run.load_config()
        assert config.seed == 0 and config.data.test_split is None and config.evaluation.suite == ["validation"]

    comparison = comparison_in(tmp_path)
    best = {name: float(found["chosen"][0].split("=")[1]) for name, found in comparison["tuning"].items()}
    assert best["contrastive"] == 8e-3 and best["generative"] == 5e-4 and best["hybrid"] in (2e-3, 8e-3)
    for run in reported:
        config = run.load_config()
        assert config.optimization.learning_rate == best[arm_of(run)]
        assert config.optimization.num_steps == load_config(DIGITS).optimization.num_steps
        assert config.data.test_split == "test" and config.evaluation.suite == list(SUITE)
        assert config.seed == 1 or (config.seed == 2 and config.model_config().contrastive_weight != 0.1)
    assert comparison["seeds"] == [1, 2]
    assert [run["contrastive_weight"] for run in comparison["weights"]] == [0.1, 0.3]
    difference = comparison["hybrid_minus"]["generative"]["bits_per_dim"]
    assert difference["mean"] == pytest.approx(0.03) and difference["low"] == pytest.approx(0.03)
    gain = comparison["hybrid_minus"]["generative"]["linear_accuracy"]
    assert gain["low"] > 0 and "bits_per_dim" not in comparison["hybrid_minus"]["contrastive"]
    assert (tmp_path / "equal_steps/table.md").read_text().strip() in capsys.readouterr().out

    executed = len(fake_runs.executed)
    shutil.rmtree(fake_runs.executed[-2].folder)
    assert main([*command, *grid]) == 0
    assert fake_runs.executed[executed:] == [fake_runs.executed[executed - 2]]


def test_the_grid_widens_until_the_best_value_lies_inside(tmp_path, fake_runs):
    command = [str(DIGITS), "--seeds", "1", "--output-dir", str(tmp_path), "--weights"]
    fake_runs.best_rate = {"contrastive": 0.03, "generative": 4e-4, "hybrid": 3e-3}
    assert main([*command, "--max-points", "7"]) == 0
    # Half, one and two times the rate, and on by the same factor.
    tried = {
        "contrastive": [0.0015, 0.003, 0.006, 0.012, 0.024, 0.048],
        "generative": [0.0015, 0.003, 0.006, 0.00075, 0.000375, 0.0001875],
        "hybrid": [0.0015, 0.003, 0.006],
    }
    tuning = comparison_in(tmp_path)["tuning"]
    for name, rates in tried.items():
        points = [tuple(point["overrides"]) for point in tuning[name]["points"]]
        assert [float(rate.split("=")[1]) for (rate,) in points] == rates
        assert open_ends(points, tuple(tuning[name]["chosen"])) == []
    assert "at an edge" not in (tmp_path / "equal_steps/table.md").read_text()

    # With less to try, all arms have as little, and the report says where the choice is not interior.
    assert main([*command, "--max-points", "4"]) == 0
    tuning = comparison_in(tmp_path)["tuning"]
    assert {name: len(found["points"]) for name, found in tuning.items()} == dict(zip(ARMS, (4, 4, 3), strict=True))
    lines = (tmp_path / "equal_steps/table.md").read_text().splitlines()
    (contrastive,) = [line for line in lines if line.startswith("- Contrastive only: ")]
    assert contrastive.startswith("- Contrastive only: optimization.learning_rate=0.012; best of 4 points by ")
    assert contrastive.endswith("; **at an edge: no higher optimization.learning_rate was tried**.")
    assert next(line for line in lines if line.startswith("- Hybrid: ")).endswith("(seed 0); interior.")
    assert "- Each arm could try 4 points; no test image was looked at for it." in lines


def test_a_rate_that_diverges_ends_the_grid(tmp_path, fake_runs):
    command = [str(DIGITS), "--seeds", "1", "--output-dir", str(tmp_path), "--weights"]
    fake_runs.diverges_above = 0.01
    assert main(command) == 0
    tuning = comparison_in(tmp_path)["tuning"]["contrastive"]
    assert tuning["chosen"] == ["optimization.learning_rate=0.006"]
    assert tuning["points"][-1] == {"overrides": ["optimization.learning_rate=0.012"], "score": None}


def test_an_arm_that_always_diverges_is_told(tmp_path, fake_runs, capsys):
    fake_runs.diverges_above = 1e-4
    grid = ["--grid", "optimization.learning_rate=1e-3,2e-3"]
    assert main([str(DIGITS), *grid, "--output-dir", str(tmp_path)]) == 1
    assert "Every run of 'contrastive only' diverged; give --grid lower" in capsys.readouterr().err


def test_what_is_beside_the_best_point():
    def point(*values):
        return tuple(f"section.{key}={value}" for key, value in zip("abc", values, strict=False))

    scores = {point(a, b): a + b for a in (1, 2) for b in (4, 16)}
    assert open_ends(scores, point(2, 16)) == [(0, True), (1, True)]
    assert missing_neighbour(scores) == point(4, 16)
    scores[point(4, 16)] = 0
    assert missing_neighbour(scores) == point(2, 64)
    scores[point(2, 64)] = 0
    assert missing_neighbour(scores) is None and open_ends(scores, point(2, 16)) == []
    # A best point whose line was not tried yet is at both of its ends.
    assert open_ends({**scores, point(3, 8): 99}, point(3, 8)) == [(0, False), (0, True), (1, False), (1, True)]
    # Words have no ends; a zero is no part of a geometric row, but the report tells of the edge.
    words = {point("mean", 1): 0, point("attention", 1): 1}
    assert missing_neighbour(words) is None and open_ends(words, point("attention", 1)) == []
    zero = {point(0): 1, point(0.1): 0}
    assert missing_neighbour(zero) is None and open_ends(zero, point(0)) == [(0, False)]


def test_the_table_says_first_what_a_set_does_not_tell(tmp_path, fake_runs):
    """The untrained encoders of the fake runs have .3 - .01 per seed, the trained ones .3."""
    command = [str(DIGITS), "--seeds", "2", "--grid", "model.pooling=mean", "--output-dir", str(tmp_path), "--weights"]
    assert main(command) == 0
    text = (tmp_path / "equal_steps/table.md").read_text()
    assert text.startswith("| equal steps | raw pixels | contrastive only | generative only | hybrid | ")
    assert "| few-shot accuracy | 0.285 ± 0.007 | 0.285 ± 0.007 | 0.285 ± 0.007 |" in text
    comparison = comparison_in(tmp_path)
    titles = {name: arm.title for name, arm in ARMS.items()}
    comparison["arms"]["contrastive"][0]["looked_at"] = {"split": "validation"}
    assert f"on the validation split ({NUM_IMAGES} images, which the arms were tuned on" in table(
        comparison, titles, "hybrid"
    )
    comparison["arms"]["generative"][1]["random_few_shot_accuracy"] = 0.31
    assert table(comparison, titles, "hybrid").splitlines()[0] == (
        "**This set says nothing about the few-shot accuracy of generative only: 0.300 ± 0.000, and 0.300 ± 0.014 of "
        "its own encoder before any training.**"
    )


def test_no_setting_turns_an_arm_into_another(tmp_path):
    recipe = ["model.encoder_attention=two_pass", "model.contrastive_weight=0.7", "optimization.separate_moments=true"]
    recipe += ["model.pooling=contextual", "model.decoder_condition=features"]
    options = contest_of(recipe, tmp_path)
    point = ("model.generative_weight=2", "model.contrastive_weight=0.5")
    found = {name: plan(options, name, point, num_steps=3, seed=0).load_config() for name in ARMS}
    models = {name: config.model_config() for name, config in found.items()}
    weights = {name: (model.contrastive_weight, model.generative_weight) for name, model in models.items()}
    assert weights == {"contrastive": (0.5, 0), "generative": (0, 2), "hybrid": (0.5, 2)}
    attention = {name: model.encoder_attention for name, model in models.items()}
    assert attention == {"contrastive": "bidirectional", "generative": "causal", "hybrid": "two_pass"}
    pooling = {name: model.pooling for name, model in models.items()}
    assert pooling == {"contrastive": "contextual", "generative": "regional", "hybrid": "contextual"}
    told = {name: model.decoder_condition for name, model in models.items()}
    assert told == {"contrastive": "none", "generative": "none", "hybrid": "features"}
    separate = {name: config.optimization.separate_moments for name, config in found.items()}
    assert separate == {"contrastive": False, "generative": False, "hybrid": True}


def test_an_arm_can_have_values_of_its_own(tmp_path, fake_runs):
    own = ["--arm", "contrastive", "optimization.batch_size=64", "model.generative_weight=3"]
    own += ["--arm", "generative", "optimization.batch_size=32"]
    grid = ["--grid", "optimization.learning_rate=1e-3,2e-3"]
    assert main([str(DIGITS), *grid, *own, "--seeds", "1", "--output-dir", str(tmp_path), "--weights"]) == 0
    configs = {arm_of(run): run.load_config() for run in fake_runs.executed}
    sizes = {name: config.optimization.batch_size for name, config in configs.items()}
    assert sizes == {"contrastive": 64, "generative": 32, "hybrid": 128}
    assert configs["contrastive"].model_config().generative_weight == 0
    lines = (tmp_path / "equal_steps/table.md").read_text().splitlines()
    assert "- Contrastive only has `optimization.batch_size=64`, `model.generative_weight=3`." in lines
    assert comparison_in(tmp_path)["own_overrides"] == {"contrastive": own[2:4], "generative": own[6:]}


def test_a_failed_run_is_told_and_the_rest_is_kept(tmp_path, fake_runs, capsys):
    command = [str(DIGITS), "--seeds", "1", "--output-dir", str(tmp_path), "--weights"]
    fake_runs.fail = "hybrid/num_steps=1200,learning_rate=0.003/tuning"
    assert main(command) == 1
    said = capsys.readouterr()
    assert f"{fake_runs.fail} failed" in said.out and "1 run(s) failed" in said.err and "goes on from here" in said.err
    executed, failed, fake_runs.fail = len(fake_runs.executed), fake_runs.fail, None
    assert main(command) == 0
    folders = [str(run.folder.relative_to(tmp_path)) for run in fake_runs.executed]
    assert folders[executed] == failed and len(folders) == len(set(folders))


@pytest.mark.parametrize("budget", ["flops", "seconds"])
def test_equal_budgets_give_the_cheaper_arm_more_steps(tmp_path, fake_runs, monkeypatch, budget):
    costs = {"contrastive": 1.0, "generative": 2.0, "hybrid": 4.0}

    def flops_per_step(config):
        model = config.model_config()
        return costs[
            "generative" if model.contrastive_weight == 0 else "hybrid" if model.generative_weight else "contrastive"
        ]

    monkeypatch.setattr(budgets, "flops_per_step", flops_per_step)
    monkeypatch.setattr(budgets, "seconds_per_step", lambda configs, num_threads: dict(costs))
    grid = ["--grid", "model.pooling=mean"]
    command = [str(DIGITS), "--seeds", "1", "--budget", budget, "--output-dir", str(tmp_path), *grid, "--weights"]
    assert main(command) == 0
    steps = {arm_of(run): run.load_config().optimization.num_steps for run in fake_runs.executed}
    assert steps == {"contrastive": 4800, "generative": 2400, "hybrid": 1200}
    text = (tmp_path / f"equal_{budget}/table.md").read_text()
    assert text.startswith(f"| equal {budget} | ") and "generative only 2400, hybrid 1200 steps (" in text
    assert ": contrastive only 1, generative only 2, hybrid 4). On CPU." in text
    if budget == "seconds":  # what was measured once holds for what is run later
        costs["hybrid"] = 8.0
        assert main([*command[:2], "2", *command[3:]]) == 0
        later = fake_runs.executed[3:]
        assert sorted(run.load_config().optimization.num_steps for run in later) == [1200, 2400, 4800]
    # Another budget trains anew what has other steps: not the hybrid, by whose steps all are measured.
    executed = len(fake_runs.executed)
    command[command.index(budget)] = "steps"
    assert main(command) == 0
    assert sorted(map(arm_of, fake_runs.executed[executed:])) == ["contrastive", "generative"]
    assert comparison_in(tmp_path)["equal"] == "steps" and comparison_in(tmp_path, budget)["equal"] == budget


def test_a_busy_machine_is_told(tmp_path, fake_runs, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "seconds_per_step", lambda configs, num_threads: dict.fromkeys(configs, 1.0))
    command = [str(DIGITS), "--seeds", "1", "--budget", "seconds", "--grid", "model.pooling=mean", "--weights"]
    for load, is_told in ((3.0, True), (0.1, False)):
        monkeypatch.setattr(budgets.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert main([*command, "--output-dir", str(tmp_path / f"{load}")]) == 0
        assert ("warning: the machine has a load of 3.0" in capsys.readouterr().err) == is_told
        assert f"after a minute of load {load}" in comparison_in(tmp_path / f"{load}", "seconds")["measured"]


def test_costs_are_those_of_the_work():
    def config(*overrides):
        return load_config(DIGITS, [*(f"{key}={value}" for key, value in SMALL.items()), *overrides])

    hybrid, contrastive = config(), config("model.generative_weight=0", "model.encoder_attention=bidirectional")
    assert flops_per_step(hybrid) == flops_per_step(hybrid) > flops_per_step(contrastive) > 0
    assert flops_per_step(config("optimization.batch_size=64")) == pytest.approx(2 * flops_per_step(hybrid), rel=0.1)
    threads = torch.get_num_threads()
    seconds = seconds_per_step({"hybrid": hybrid, "contrastive": contrastive}, num_threads=1, num_turns=1)
    assert seconds.keys() == {"hybrid", "contrastive"} and min(seconds.values()) > 0
    assert torch.get_num_threads() == threads


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
        ([str(DIGITS), "--arm", "contrast", "optimization.batch_size=64"], "--arm contrast is no arm; there are contr"),
        ([str(DIGITS), "--max-points", "2"], "--max-points 2 is less than the 3 points"),
    ):
        assert main([*arguments, "--output-dir", str(tmp_path / "runs")]) == 1
        assert said in capsys.readouterr().err
    assert not fake_runs.executed


@pytest.mark.slow
def test_the_table_of_real_runs(tmp_path, monkeypatch, in_this_process):
    """Three trained arms, evaluated by the whole suite."""
    monkeypatch.setattr(judge, "NUM_STEPS", 10)
    small = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = ["--seeds", "1", "--grid", "model.pooling=mean", "--weights"]
    small += ["optimization.num_steps=2", f"evaluation.suite=[{','.join(SUITE)}]", "evaluation.num_scored_samples=8"]
    assert main([str(DIGITS), *arguments, "--output-dir", str(tmp_path), "--set", *small]) == 0
    comparison = comparison_in(tmp_path)
    text = table(comparison, {name: arm.title for name, arm in ARMS.items()}, "hybrid")
    assert text == (tmp_path / "equal_steps/table.md").read_text().strip()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    trained = {row[1]: row for row in rows if len(row) == 9}
    untrained = {row[1]: row for row in rows if len(row) == 6}
    assert len(trained) + len(untrained) == len(rows)
    run = comparison["arms"]["hybrid"][0]
    assert (run["looked_at"]["dataset"], run["looked_at"]["split"]) == ("digits", "test")
    assert trained["linear probe accuracy"][5] == f"{run['linear_accuracy']:.3f}"
    assert trained["linear probe accuracy"][2] == f"{run['pixel_linear_accuracy']:.3f}"
    assert untrained["linear probe accuracy"][4] == f"{run['random_linear_accuracy']:.3f}"
    bits = trained["bits per dimension"]
    assert bits[3] == "" and bits[4] and bits[5] and bits[6] == "" and bits[7]
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "equal_steps/figures").iterdir()}
    assert drawn.keys() == {"pareto.png", "robustness.png", "roc.png", "calibration.png"} and min(drawn.values()) > 1000


def test_a_real_run_to_tune_by_knows_validation_images_alone(tmp_path, in_this_process):
    small = [f"{key}={value}" for key, value in SMALL.items()]
    options = contest_of([*small, "evaluation.max_images=0"], tmp_path)
    run = plan_tuning(options, "hybrid", ("optimization.learning_rate=1e-3",), num_steps=2)
    assert execute([run], jobs=1) == {}
    found = run.evaluation()
    assert set(ARMS["hybrid"].tuned_by) <= found.keys() and not {"linear_accuracy", "bits_per_dim"} & found.keys()
    assert found["looked_at"]["split"] == "validation"
    assert found["num_images"]["test"] == found["num_images"]["validation"] != 360
