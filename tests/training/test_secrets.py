"""A token in the environment reaches no output, no error and no file."""

from pathlib import Path

import pytest
from other_processes import Interpreter
from training_fixtures import DIGITS_YAML, files_of, small_overrides

from training import evaluate
from training.pretrain import main


SECRET = "hf_" + "Secret" * 6


def test_a_run_and_its_evaluation_tell_no_token(tmp_path, monkeypatch, capfd, one_thread):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for constants in ("huggingface_hub.constants", "datasets.config"):  # whose clients wait long for a network
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", True)
    suite = "[likelihood,health]"
    folder = tmp_path / "run"
    overrides = small_overrides(folder, evaluation__suite=suite, logging__trackers="[tensorboard]")
    assert main([str(DIGITS_YAML), *overrides]) == 0
    assert evaluate.main([str(folder / "model"), "--dataset", "someone/private"]) == 1
    said = capfd.readouterr()
    assert "someone/private" in said.err
    for name, content in {"out": said.out.encode(), "err": said.err.encode(), **files_of(folder)}.items():
        assert SECRET.encode() not in content, name


@pytest.mark.slow
def test_a_push_that_fails_tells_no_token(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    # A port that nobody listens at.
    process = Interpreter(tmp_path / "elsewhere", True, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=SECRET)
    code = """
import logging, traceback
from modeling_hybrid import HybridConfig, HybridForPreTraining, HybridImageProcessor

logging.basicConfig(level=logging.DEBUG)
config = HybridConfig.from_size("tiny")
model = HybridForPreTraining(config)
model.save_pretrained("saved")
for act in (
    lambda: model.push_to_hub("someone/new"),
    lambda: HybridImageProcessor.from_config(config).push_to_hub("someone/new"),
    lambda: HybridForPreTraining.from_pretrained("someone/private"),
):
    try:
        act()
        print("no error")
    except Exception:
        traceback.print_exc()
"""
    try:
        said = process.run(code, allowed=("127.0.0.1",))
    finally:
        process.end()
    assert said.count("Traceback") >= 3 and "no error" not in said
    for name, content in {"said": said.encode(), **files_of(Path(tmp_path))}.items():
        assert SECRET.encode() not in content, name
