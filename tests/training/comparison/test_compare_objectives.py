"""The comparison covers every objective, runs, goes on where it stopped, and its table says what the runs found."""

import json
from pathlib import Path

import pytest
from training_fixtures import SMALL

from modeling_hybrid.objectives import OBJECTIVES
from training.compare_objectives import main
from training.comparison import budget
from training.comparison.objectives import load_comparison, samples, table, values_of
from training.config import load_config


ROOT = Path(__file__).parents[3]


def test_every_objective_is_compared():
    comparison = load_comparison(ROOT / "training/comparison/objectives.yaml")
    configs = {
        name: load_config(ROOT / "training/comparison" / comparison.base, [*comparison.overrides, *arm.overrides])
        for name, arm in comparison.arms.items()
    }
    assert {config.model_config().objective["name"] for config in configs.values()} == set(OBJECTIVES)
    assert len({config.optimization.num_steps for config in configs.values()}) == 1
    assert all(arm.title for arm in comparison.arms.values())


def test_the_table_shows_mean_and_spread_and_marks_the_best():
    one = [{"linear_accuracy": 0.9, "bits_per_dim": 2.0}, {"linear_accuracy": 0.8, "bits_per_dim": 2.0}]
    other = [{"linear_accuracy": 0.5, "bits_per_dim": 1.0}]
    arms = {"one": {"title": "One", "runs": one}, "other": {"title": "Other", "runs": other}}
    for found in one + other:
        found |= {"few_shot_accuracy": 0.5, "ood_auroc": 0.5, "effective_rank": 3.0, "train_seconds": 7.4}
    lines = table(arms).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    assert lines[2].startswith("| One | **0.850** ± 0.071 | **0.500** ± 0.000 | 2.000 ± 0.000 |")
    assert lines[3].startswith("| Other | 0.500 | **0.500** | **1.000** |") and lines[3].endswith("| 3.0 | 7 |")


def test_samples_are_shown_by_how_they_are_drawn():
    plain = {"frechet_distance": 2.0, "precision": 0.5, "recall": 0.25}
    staged = {f"two_stage_{key}": value / 2 for key, value in plain.items()} | {"two_stage_legible_share": 0.75}
    run = values_of(plain | staged | {"seed": 3, "few_shot_accuracy_by_shots": {"1": 0.5}})
    assert run == plain | staged
    arms = {"one": {"title": "One", "runs": [plain]}, "told": {"title": "Told", "runs": [run, run]}}
    assert samples(arms).splitlines()[2:] == [
        "| One | from nothing | 2.00 | 0.500 | 0.250 |  |",
        "| Told | from nothing | 2.00 ± 0.00 | 0.500 ± 0.000 | 0.250 ± 0.000 |  |",
        "| Told | two stages | 1.00 ± 0.00 | 0.250 ± 0.000 | 0.125 ± 0.000 | 0.750 ± 0.000 |",
    ]


@pytest.mark.parametrize("name", ["condition_digits", "condition_glyphs", "condition_mnist", "kept"])
def test_every_other_comparison_is_valid(name):
    comparison = load_comparison(ROOT / f"training/comparison/{name}.yaml")
    for arm in comparison.arms.values():
        load_config(ROOT / "training/comparison" / comparison.base, [*comparison.overrides, *arm.overrides])


def test_runs_are_made_once_and_failures_are_told(tmp_path, capsys, in_this_process):
    small = [f"{key}={value}" for key, value in SMALL.items()] + ["evaluation.suite=[likelihood]"]
    command = ["--only", "info_nce", "swav", "--seeds", "1", "--output-dir", str(tmp_path), "--set"]
    assert main([*command, *small, "optimization.num_steps=2"]) == 0
    printed = capsys.readouterr().out
    assert "| InfoNCE (NT-Xent) |" in printed and "| SwAV |" in printed
    assert printed.strip().endswith((tmp_path / "table.md").read_text().strip())
    results = json.loads((tmp_path / "swav-0" / "evaluation.json").read_text())
    assert f"{results['bits_per_dim']:.3f}" in printed

    # Finished runs are left alone; one without its card goes on.
    card = tmp_path / "swav-0" / "README.md"
    card.unlink()
    times = [(tmp_path / f"{name}-0" / "evaluation.json").stat().st_mtime_ns for name in ("info_nce", "swav")]
    assert main([*command, *small, "optimization.num_steps=2"]) == 0
    again = [(tmp_path / f"{name}-0" / "evaluation.json").stat().st_mtime_ns for name in ("info_nce", "swav")]
    assert again[0] == times[0] and again[1] > times[1] and card.exists()

    # Neither a finished run nor an unfinished one is taken for one with other values.
    card.unlink()
    assert main([*command, *small, "optimization.num_steps=3"]) == 1
    told = capsys.readouterr().out
    assert "info_nce-0 holds a run with other values of optimization.num_steps" in told
    assert "swav-0.log" in told and "other values of optimization.num_steps" in (tmp_path / "swav-0.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "infonce"], "--only infonce: the arms are none, info_nce"),
        (["--set", "optimization.num_step=3"], "'num_steps'"),
        (["--comparison", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_told_before_the_first_run(tmp_path, capsys, arguments, said):
    assert main([*arguments, "--output-dir", str(tmp_path / "runs")]) == 1
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_comparison(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("base: digits.yaml\narm: {}\n")
    assert main(["--comparison", str(tmp_path / "a.yaml")]) == 1
    assert "is not a comparison" in capsys.readouterr().err


def test_arms_that_name_their_control_are_judged_beside_it(tmp_path, in_this_process, monkeypatch):
    """Once both are finished; and beside more steps of it, as many as take as long, where its own are faster."""
    costs = {"ours": 0.3, "control": 0.2}
    monkeypatch.setattr(budget, "seconds_per_step", lambda configs, num_threads: dict(costs))
    file = tmp_path / "two.yaml"
    base = ROOT / "training/configs/digits.yaml"
    arms = "{plain: {title: Plain}, other: {title: Other, system: meow, control: plain, overrides: [seed=3]}}"
    file.write_text(f"{{base: {base}, arms: {arms}}}")
    small = [f"{key}={value}" for key, value in SMALL.items()]
    small += ["evaluation.suite=[likelihood]", "optimization.num_steps=2"]
    command = ["--comparison", str(file), "--seeds", "1", "--output-dir", str(tmp_path / "runs")]
    stored = tmp_path / "runs" / "objectives.json"
    assert main([*command, "--only", "other", "--set", *small]) == 0
    assert "minus_control" not in json.loads(stored.read_text())["arms"]["other"]
    assert main([*command, "--set", *small]) == 0
    found = json.loads(stored.read_text())
    assert found["dataset"] == "digits" and "minus_control" not in found["arms"]["plain"]
    bits = [found["arms"][name]["runs"][0]["bits_per_dim"] for name in ("other", "plain")]
    assert found["arms"]["other"]["control"] == "plain"
    assert found["arms"]["other"]["minus_control"]["bits_per_dim"]["mean"] == pytest.approx(bits[0] - bits[1], abs=1e-6)
    assert found["arms"]["other"]["step_ratio"] == pytest.approx(1.5)
    folder = tmp_path / "runs/plain-3-steps-0"
    longer = json.loads((folder / "evaluation.json").read_text())
    assert load_config(folder / "config.yaml").optimization.num_steps == 3
    assert found["arms"].keys() == {"plain", "other"}
    at_equal_seconds = found["arms"]["other"]["at_equal_seconds"]
    assert at_equal_seconds["num_steps"] == 3
    difference = at_equal_seconds["minus_control"]["bits_per_dim"]["mean"]
    assert difference == pytest.approx(bits[0] - longer["bits_per_dim"], abs=1e-6)
    # What was measured once holds, and hardly longer is as long.
    costs["control"] = 1.0
    assert main([*command, "--set", *small]) == 0 and json.loads(stored.read_text()) == found
    (tmp_path / "runs/other-seconds.json").unlink()
    costs["control"] = 0.29
    assert main([*command, "--set", *small]) == 0
    assert "at_equal_seconds" not in json.loads(stored.read_text())["arms"]["other"]
