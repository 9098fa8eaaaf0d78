"""The table of further systems: every one has a row, words follow the intervals, and what it links to is there."""

import json

from training import compare_values
from training.comparison.objectives import load_comparison
from training.comparison.systems import SYSTEMS, table, verdict
from training.config import load_config
from training.pages import ROOT


def between(low, mean, high):
    return {"mean": mean, "low": low, "high": high}


UP, LEVEL, DOWN = between(0.01, 0.02, 0.03), between(-0.01, 0.0, 0.01), between(-0.03, -0.02, -0.01)


def stored(**arms) -> dict:
    runs = {"title": "plain", "runs": []}
    judged = {name: {"title": name, "control": "plain", "runs": []} | arm for name, arm in arms.items()}
    return {"dataset": "digits", "split": "test", "seeds": [0, 1, 2], "arms": {"plain": runs} | judged}


def test_one_word_over_all_accuracies():
    assert verdict({"linear_accuracy": UP, "few_shot_accuracy": LEVEL}) == "better"
    assert verdict({"linear_accuracy": UP, "few_shot_accuracy": DOWN}) == "tie"
    assert verdict({"linear_accuracy": LEVEL, "few_shot_accuracy": DOWN}) == "worse"
    assert verdict({"linear_accuracy": LEVEL, "bits_per_dim": UP, "ece": DOWN}) == "tie"
    assert verdict({"accuracy": between(None, 0.1, None)}) == "one seed"


def test_every_system_has_a_row_and_every_judged_arm_one():
    arms = {
        "mild": {"system": "deb_cse", "minus_control": {"linear_accuracy": UP, "bits_per_dim": DOWN}},
        "strong": {"system": "deb_cse", "minus_control": {"few_shot_accuracy": DOWN}},
    }
    lines = table(stored(**arms)).splitlines()
    assert len(lines) == 2 + len(SYSTEMS) + 1
    mild, strong = (line for line in lines if "DebCSE" in line)
    assert "| mild, beside plain: digits, test, seeds 0, 1, 2 |  | **linear +0.020 [+0.010, +0.030]**; " in mild
    assert mild.endswith("**bits/dim -0.020 [-0.030, -0.010]** | better |") and strong.endswith("| worse |")
    assert "[SimCSE](https://arxiv.org/abs/2104.08821)" in "".join(lines)
    no = next(line for line in lines if "ContraCode" in line)
    assert no.endswith("| no: variants of a program by a compiler |  |  |  |  |")


def test_steps_that_take_longer_are_judged_at_equal_seconds_too():
    def line_of(linear_at_equal_seconds, system="deb_cse"):
        at_equal_seconds = {"num_steps": 180, "minus_control": {"linear_accuracy": linear_at_equal_seconds}}
        timed = {"system": system, "step_ratio": 1.2, "at_equal_seconds": at_equal_seconds}
        lines = table(stored(slow=timed | {"minus_control": {"linear_accuracy": UP}})).splitlines()
        return next(line for line in lines if "slow, beside" in line)

    expected = "| 1.20 | **linear +0.020 [+0.010, +0.030]**. Beside 180 steps: linear +0.000 [-0.010, +0.010] | "
    assert line_of(LEVEL).endswith(f"{expected}better, at equal seconds tie |")
    assert line_of(LEVEL, "replaced_patches").endswith("| better, at equal seconds tie, not tried further |")
    assert line_of(UP).endswith("| better |")


def test_arms_of_the_recipe_are_judged_beside_an_arm_at_equal_steps():
    comparison = load_comparison(ROOT / "training/comparison/systems.yaml")
    base = ROOT / "training/comparison" / comparison.base
    steps = set()
    for arm in comparison.arms.values():
        steps.add(load_config(base, [*comparison.overrides, *arm.overrides]).optimization.num_steps)
        assert (arm.system is None) == (arm.control is None)
        assert arm.system is None or (arm.system in SYSTEMS and arm.control in comparison.arms)
    assert len(steps) == 1


def test_two_values_of_the_same_runs(tmp_path, capsys):
    folders = []
    for seed, (ours, control) in enumerate([(0.6, 0.5), (0.7, 0.58), (0.65, 0.57)]):
        folders.append(tmp_path / str(seed))
        folders[-1].mkdir()
        looked_at = {"dataset": "digits", "split": "test"}
        values = {"seed": seed, "new_accuracy": ours, "old_accuracy": control, "looked_at": looked_at}
        (folders[-1] / "evaluation.json").write_text(json.dumps(values))
    output = tmp_path / "values.json"
    command = [*map(str, folders), "--system", "opta", "--output", str(output), "--pairs"]
    assert compare_values.main([*command, "new_accuracy=old_accuracy"]) == 0
    found = json.loads(output.read_text())
    assert found["seeds"] == [0, 1, 2] and found["arms"]["old_accuracy"]["runs"][1] == {"seed": 1, "old_accuracy": 0.58}
    line = next(line for line in table(found).splitlines() if "new accuracy, beside old accuracy" in line)
    assert "new accuracy +0.100 [+0." in line and line.endswith("| better |")
    for pairs, said in (
        ("new_accuracy", "is not of the form VALUE=CONTROL"),
        ("new_accuracy=older", "There is no 'older'"),
    ):
        assert compare_values.main([*command, pairs]) == 1
        assert said in capsys.readouterr().err
    assert compare_values.main([str(folders[0]), *command, "new_accuracy=old_accuracy"]) == 1
    assert "runs of equal seed say nothing" in capsys.readouterr().err
    assert compare_values.main([str(folders[0]), "--system", "otpa", "--pairs", "new_accuracy=old_accuracy"]) == 1
    assert "--system otpa: the systems are" in capsys.readouterr().err
