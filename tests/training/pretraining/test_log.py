"""What a run says of itself beside its log."""

from training.evaluation.suite import summary
from training.pretraining.log import Forecast


def test_a_run_tells_once_how_long_it_takes(monkeypatch):
    """From the steps after a warm-up, also where it goes on from a checkpoint."""
    clock = iter([100.0, 120.0])  # ten steps of two seconds
    monkeypatch.setattr("training.pretraining.log.time.perf_counter", lambda: next(clock))
    forecast = Forecast(num_steps=1013, step=1000 - 500)
    told = {step: said for step in range(501, 1014) if (said := forecast.after(step))}
    assert list(told) == [513]
    assert "2 s a step" in told[513] and "the 500 steps that are left take about 0:16:40" in told[513]
    # 15 % of the 1,013 steps; of a shorter run, three minutes.
    assert "the evaluation at the end up to about 0:05:04" in told[513]


def test_the_evaluation_of_a_short_run_is_told_as_three_minutes(monkeypatch):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr("training.pretraining.log.time.perf_counter", lambda: next(clock))
    forecast = Forecast(num_steps=100, step=0)
    (told,) = [said for step in range(1, 101) if (said := forecast.after(step))]
    assert "the evaluation at the end up to about 0:03:00" in told


def test_a_short_run_says_nothing():
    forecast = Forecast(num_steps=12, step=0)
    assert not any(forecast.after(step) for step in range(1, 13))


def test_the_summary_says_where_things_are(tmp_path):
    results = {"linear_accuracy": 0.0, "bits_per_dim": 1.25, "evaluation_seconds": {"health": 1.0, "likelihood": 61.0}}
    results["looked_at"] = {"dataset": "./data/mnist", "split": "test", "date": "2026-11-26"}
    text = summary(results, tmp_path, tmp_path / "model")
    assert text.startswith(
        "linear 0.000, bits/dim 1.250\nThe evaluation took 62 s; the slowest questions: likelihood 61 s"
    )
    for name in ("README.md", "evaluation.json", "figures", "model"):
        assert str(tmp_path / name) in text
    assert "the test split of ./data/mnist" in text
