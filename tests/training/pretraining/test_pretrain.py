"""A run does what it says: every step, every file, whatever is trained and however it is started."""

import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from training_fixtures import (
    DIGITS_YAML,
    TORCHRUN,
    assert_same_run,
    files_of,
    launch,
    log_lines,
    reset_accelerate,
    small_config,
    small_overrides,
    start,
    train_until,
    train_whole,
)
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from training.config import load_config
from training.pretrain import main, pretrain
from training.pretraining.log import describe
from training.pretraining.processes import prepare_accelerator
from training.pretraining.run import Run


def test_evaluating_does_not_change_the_training(tmp_path, whole_run):
    train_whole(small_config(tmp_path, logging__evaluate_every=1))
    weights = [folder / "last" / "model.safetensors" for folder in (whole_run(), tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# The loop.


def test_every_step_is_logged_once_and_the_last_one_always(tmp_path):
    train_whole(small_config(tmp_path, optimization__num_steps=3, logging__log_every=5, logging__evaluate_every=100))
    training, validation = log_lines(tmp_path)
    assert training["step"] == validation["step"] == 3
    assert {"loss", "contrastive_loss", "generative_loss", "bits_per_dim", "gradient_norm", "learning_rate"} <= set(
        training
    )
    assert {"validation/loss", "validation/bits_per_dim", "validation/knn_accuracy"} <= set(validation)
    assert training["loss"] == pytest.approx(training["generative_loss"] + 0.3 * training["contrastive_loss"], rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_its_share(tmp_path):
    overrides = {"optimization__final_learning_rate_share": 0.1, "logging__log_every": 1}
    train_whole(small_config(tmp_path, **overrides))
    rates = [row["learning_rate"] for row in log_lines(tmp_path) if "learning_rate" in row]
    peak = 3e-3
    assert rates[:2] == pytest.approx([peak / 2, peak])
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * peak)


def test_accumulated_batches_equal_a_large_one_for_the_likelihood(tmp_path):
    clean = {"augmentation__num_augmented_views": 0, "model__contrastive_weight": 0, "model__hidden_dropout": 0}
    overrides = clean | {"optimization__num_steps": 4, "logging__log_every": 1}
    large = train_whole(small_config(tmp_path / "large", optimization__batch_size=64, **overrides))
    overrides |= {"optimization__batch_size": 32, "optimization__gradient_accumulation_steps": 2}
    small = train_whole(small_config(tmp_path / "small", **overrides))
    # AdamW turns the rounding of a gradient close to zero into a visible step, and that of the bias of keys is zero, as
    # softmax takes it out; the norms below are the sharper test.
    others = dict(small.bare_model.named_parameters())
    for name, parameter in large.bare_model.named_parameters():
        if not name.endswith("qkv_proj.bias"):
            torch.testing.assert_close(parameter, others[name], rtol=1e-3, atol=1e-4, msg=name)
    for one, other in zip(log_lines(tmp_path / "large"), log_lines(tmp_path / "small"), strict=True):
        for name in {"loss", "gradient_norm", "bits_per_dim"} & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name


def test_bf16_that_is_emulated_is_told(tmp_path, monkeypatch):
    run = start(small_config(tmp_path, optimization__precision="bf16"))
    for capabilities, warned in (
        ({"avx512_f": True}, True),
        ({"avx512_bf16": True}, False),
        ({"amx_bf16": True}, False),
    ):
        found = {"architecture": "x86_64", **capabilities}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        told = describe(run.config, run.accelerator, run.bare_model, run.splits.train, run.views, run.batch_size)
        assert ("no instructions for bf16" in told) == (warned and run.accelerator.device.type == "cpu")


def test_description_counts_negatives_and_warns(tmp_path):
    def described(config) -> str:
        run = start(config)
        return describe(config, run.accelerator, run.bare_model, run.splits.train, run.views, run.batch_size)

    overrides = {"augmentation__num_augmented_views": 2, "optimization__gradient_accumulation_steps": 4}
    told = described(small_config(tmp_path / "a", **overrides))
    # 3 views of 32 images: of 95 other rows, 2 are views of the same image.
    assert "2 positive(s) and 93 negative(s)" in told and "143 training images of 1x8x8" in told
    assert "adds no negatives" in told and "bf16" not in told
    assert "no augmentation" not in told

    ranges = ["rotation_degrees", "shift", "shear_degrees", "noise"]
    off = {f"augmentation__{name}": 0 for name in ranges} | {
        f"augmentation__{name}": "[]" for name in ("scale", "gamma", "erase_area")
    }
    told = described(small_config(tmp_path / "b", **off))
    assert "no augmentation is switched on" in told and "adds no negatives" not in told


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    config = small_config(tmp_path, logging__log_every=100)
    train_until(config, 6, monkeypatch)
    kept = files_of(tmp_path / "state")

    def poison(self, *batch, step=Run.step):
        if self.progress.step == 6:
            torch.nn.init.constant_(next(self.model.parameters()), float("nan"))
        return step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=r"step 8.*loss is nan.*learning_rate"):
        patch.setattr(Run, "step", poison)
        train_whole(config)
    assert files_of(tmp_path / "state") == kept
    assert train_whole(config).progress.step == 12


def test_bf16_trains(tmp_path):
    overrides = {"optimization__precision": "bf16", "optimization__num_steps": 3}
    run = train_whole(small_config(tmp_path, **overrides))
    assert {parameter.dtype for parameter in run.bare_model.parameters()} == {torch.float32}
    assert log_lines(tmp_path)[-1]["step"] == 3


def test_gradient_checkpointing_changes_nothing(tmp_path):
    overrides = {"optimization__num_steps": 3}
    plain = train_whole(small_config(tmp_path / "a", **overrides))
    saving = train_whole(small_config(tmp_path / "b", optimization__gradient_checkpointing=True, **overrides))
    for one, other in zip(plain.bare_model.parameters(), saving.bare_model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_compiled_training_equals_plain(tmp_path):
    overrides = {"logging__log_every": 1, "model__hidden_dropout": 0, "logging__evaluate_every": 100}
    plain = train_whole(small_config(tmp_path / "a", **overrides))
    compiled = train_whole(small_config(tmp_path / "b", optimization__compile=True, **overrides))
    for row, other in zip(log_lines(tmp_path / "a"), log_lines(tmp_path / "b"), strict=True):
        for name in {"contrastive_loss", "generative_loss", "validation/loss"} & set(row):
            assert other[name] == pytest.approx(row[name], rel=1e-3), (row["step"], name)
    assert plain.bare_model.state_dict().keys() == compiled.bare_model.state_dict().keys()


def test_weight_decay_spares_vectors_and_tables(tmp_path):
    run = start(small_config(tmp_path))
    decayed, kept = ({id(p) for p in group["params"]} for group in run.optimizers[0].param_groups)
    names = {id(p): name for name, p in run.bare_model.named_parameters()}
    assert decayed | kept == set(names) and not decayed & kept
    assert all(run.bare_model.get_parameter(names[i]).dim() >= 2 for i in decayed)
    spared = {names[i] for i in kept}
    assert any("position" in name for name in spared) and any("code_embedding" in name for name in spared)
    assert all(name in spared for name in names.values() if name.endswith("bias"))


def test_the_decoder_has_a_rate_of_its_own_also_where_the_run_goes_on(tmp_path, monkeypatch):
    own = {"optimization__decoder_rate_factor": 4, "optimization__separate_moments": True}
    whole = train_whole(small_config(tmp_path / "whole", **own))
    of_decoder = {id(p) for part in (whole.bare_model.decoder, whole.bare_model.depth_head) for p in part.parameters()}
    for optimizer in whole.optimizers:
        rates = {False: set(), True: set()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates[id(parameter) in of_decoder].add(group["initial_lr"])
        (slow,), (fast,) = rates.values()
        assert fast == pytest.approx(4 * slow)
    stopped = small_config(tmp_path / "stopped", **own)
    train_until(stopped, 6, monkeypatch)
    train_whole(stopped)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# Trackers.


def test_tensorboard_is_written(tmp_path):
    overrides = {"optimization__num_steps": 2, "evaluation__suite": "[likelihood]"}
    pretrain(small_config(tmp_path, logging__trackers="[tensorboard]", **overrides), "a test")
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("tracker", "said"), [("wanbd", "it is unknown"), ("swanlab", "is not installed")])
def test_trackers_that_cannot_be_used(tmp_path, tracker, said):
    with pytest.raises(ValueError, match=rf"{tracker!r} cannot be used, {said}|{said}"):
        prepare_accelerator(small_config(tmp_path, logging__trackers=f"[{tracker}]"))


# Whole runs in this process.


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ({"model__encoder_attention": "bidirectional", "model__generative_weight": 0}, "bits_per_dim"),
        ({"model__contrastive_weight": 0}, None),
        ({"model__encoder_attention": "two_pass"}, None),
    ],
    ids=["contrastive only", "generative only", "two passes"],
)
def test_each_kind_of_model_runs_to_its_card(tmp_path, overrides, missing):
    reset_accelerate()
    pretrain(small_config(tmp_path, optimization__num_steps=2, **overrides), "python -m training.pretrain x.yaml")
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert missing is None or missing not in results
    assert "linear_accuracy" in results and "ood_auroc" in results
    assert "python -m training.pretrain x.yaml" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("streaming", [False, True])
def test_unlabelled_photographs_train_without_probes(tmp_path, monkeypatch, streaming):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos").mkdir()
    for i in range(80):
        pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{i}.png")
    reset_accelerate()
    config = small_config(
        tmp_path / "run",
        data__dataset="imagefolder",
        data__arguments__data_dir=tmp_path / "photos",
        data__validation_fraction=0.2,
        data__streaming=streaming,
        model__num_channels=3,
        optimization__num_steps=3,
        optimization__batch_size=16,
        evaluation__max_images=20,
    )
    pretrain(config, "a test")
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "bits_per_dim" in results and "linear_accuracy" not in results
    assert (tmp_path / "run" / "README.md").exists()


def test_the_wrapped_model_goes_before_the_process_group(tmp_path, monkeypatch):
    """The other way round, two processes hang at their end in one run of a few."""
    run = train_whole(small_config(tmp_path, optimization__num_steps=1))
    wrapped = weakref.ref(run.model)
    gone = []
    monkeypatch.setattr(Accelerator, "end_training", lambda self: gone.append(wrapped() is None))
    run.close()
    assert gone == [True]


def test_splits_that_are_too_small(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=1400 on each of 1 process"):
        train_whole(small_config(tmp_path / "a", optimization__batch_size=1400))
    with pytest.raises(ValueError, match=r"validation split of 1 image\(s\) is too small"):
        start(small_config(tmp_path / "b", data__validation_fraction=0.0001))


def run_main(output_dir: Path) -> int:
    reset_accelerate()
    return main([str(DIGITS_YAML), *small_overrides(output_dir, evaluation__suite="[likelihood]")])


def test_an_interrupt_is_no_accident(tmp_path, monkeypatch, capsys, whole_run):
    def step_or_interrupt(self, *batch, step=Run.step):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_or_interrupt)
        assert run_main(tmp_path) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert run_main(tmp_path) == 0
    assert_same_run(whole_run(), tmp_path)
    assert run_main(tmp_path) == 1
    assert "error: " in (told := capsys.readouterr().err) and "finished run" in told


def test_usage(capsys):
    for arguments, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert "training/configs/digits.yaml" in capsys.readouterr().out
    assert main(["nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


# Whole runs as users start them.


def test_command_line_leaves_all_that_the_design_names(launched_run):
    folder, printed = launched_run
    assert load_config(folder / "config.yaml") == small_config(folder, logging__trackers="[tensorboard]")
    for name in ("samples", "completions", "features", "training_curves", "likelihood"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["train_seconds"] > 0 and results["seed"] == 0
    assert results["command"].startswith("python -m training.pretrain ")
    assert (folder / "README.md").read_text().startswith("---\n")
    assert (folder / "state").is_dir() and (folder / "last" / "model.safetensors").exists()
    assert [row["step"] for row in log_lines(folder)] == [4, 5, 6, 8, 10, 12, 12]
    for auto_class in (
        AutoModel,
        AutoModelForPreTraining,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
    ):
        auto_class.from_pretrained(folder / "model")
    AutoImageProcessor.from_pretrained(folder / "model")
    said = [printed.index(line) for line in ("Loading torch", "Reading data.dataset='digits'", "Building the model")]
    assert said == sorted(said) and said[-1] < printed.index("0/12")
    for noise in ("Warning", "set_vital", "pin_memory", "Writing model shards", "Loading weights", "Converting"):
        assert noise not in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        TORCHRUN,
        (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers(tmp_path, launcher):
    done = launch(tmp_path, *launcher, optimization__num_steps=3)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "evaluation.json").read_text())["bits_per_dim"] > 0
    AutoModel.from_pretrained(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_both, of_two",
    [
        ({}, {}),
        ({}, {"optimization__chunk_size": 5}),
        ({"optimization__separate_moments": "true"}, {}),
        ({"model__decoder_condition": "features", "model__condition_share": 1}, {}),
    ],
    ids=["plain", "chunks", "separate moments", "told features"],
)
def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path, of_both, of_two):
    """Deterministic views and no dropout: negatives and gradients of both processes together are those of one."""
    off = {f"augmentation__{name}": 0 for name in ("rotation_degrees", "shift", "shear_degrees", "noise")}
    off |= {f"augmentation__{name}": "[]" for name in ("scale", "gamma", "erase_area")}
    overrides = off | {"model__hidden_dropout": 0, "optimization__num_steps": 4, "model__contrastive_weight": 1.0}
    overrides |= of_both
    done = launch(tmp_path / "two", *TORCHRUN, **overrides | of_two | {"optimization__batch_size": 16})
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and "1 positive(s) and 62 negative(s)" in done.stdout
    train_whole(small_config(tmp_path / "one", optimization__batch_size=32, **overrides))
    one, two = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        if not name.endswith("qkv_proj.bias"):  # as above
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)
    for row, other in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        for name in {"loss", "contrastive_loss", "validation/generative_loss"} & set(row):
            assert other[name] == pytest.approx(row[name], rel=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["output folder", "data"])
def test_every_process_ends_when_the_main_one_refuses(tmp_path, fault):
    overrides = {}
    if fault == "data":
        overrides["data__image_column"] = "picture"
    else:
        (tmp_path / "thesis.tex").write_text("years of work")
    # Or it would wait for the others, and be ended with an error of the test.
    done = launch(tmp_path, *TORCHRUN, **overrides)
    assert done.returncode != 0 and "error: " in done.stderr
