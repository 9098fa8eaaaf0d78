"""The evaluation of a checkpoint: every question that is asked, then the results, pictures and card they make."""

import json
import sys
import time
import traceback
from datetime import date
from importlib import import_module
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor

from ..config import PretrainConfig
from ..data.splits import Splits
from ..disk import writing, written_whole
from ..hardware import best_device, describe
from ..plain_files import read_json
from ..reports import model_card, pictures
from ..reports.reported import REPORTED
from .subject import Findings, Subject


def evaluate_run(
    checkpoint: Path,
    splits: Splits,
    config: PretrainConfig,
    output_dir: Path,
    command: str,
    train_seconds: float | None = None,
    only_missing: bool = False,
) -> dict:
    """
    Ask the questions of `evaluation.suite`, or those of them that have no answer under `output_dir` yet, and write
    `evaluation.json`, `per_image.npz`, `figures/` and the card there.

    Everything is fitted or chosen on the training and validation splits; the test split is only scored, here. A
    question that fails stops no other: its error is shown, and kept in `failed_questions` of the results.
    """
    earlier, per_image = _earlier(output_dir) if only_missing else ({}, {})
    device = best_device()
    model = HybridForPreTraining.from_pretrained(checkpoint).to(device).eval()
    folder = output_dir / "figures"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A damaged log is told before any question is asked.
        if (output_dir / "log.jsonl").exists():
            pictures.training_curves(output_dir / "log.jsonl", folder / "training_curves.png")
    subject = Subject(model, HybridImageProcessor.from_pretrained(checkpoint), config, splits, folder, checkpoint)
    results, failed = dict(earlier), {}
    seconds, num_images = results.get("evaluation_seconds", {}), results.get("num_images_by_question", {})
    if subject.groups is not None:
        per_image["groups"] = subject.groups
    bar = tqdm([name for name in config.evaluation.suite if name not in seconds], unit="question")
    for name in bar:
        bar.set_description(f"evaluating {name}")
        began = time.perf_counter()
        try:
            findings: Findings = import_module(f"{__package__}.questions.{name}").evaluate(subject)
        except Exception as error:
            bar.write(
                f"{name} failed; the other questions are asked all the same.\n{traceback.format_exc()}", sys.stderr
            )
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        seconds[name] = round(time.perf_counter() - began, 2)
        results |= findings.results
        per_image |= findings.per_image
        if findings.num_images:
            num_images[name] = findings.num_images
    results |= {
        "num_parameters": model.num_parameters(only_trainable=True),
        "num_encoder_parameters": model.encoder.num_parameters(),
        "num_images": {name: len(split) for name, split in subject.levels.items()},
        # Of questions that do not take all of them.
        "num_images_by_question": num_images,
        "train_seconds": earlier.get("train_seconds", train_seconds),
        # Features and likelihoods are counted where they are first asked for.
        "evaluation_seconds": seconds,
        "failed_questions": failed,
        # A look at a test split is spent: none goes unrecorded.
        "looked_at": {
            "dataset": config.data.dataset,
            "split": "test" if splits.has_test else "validation",
            "date": date.today().isoformat(),
        },
        "seed": config.seed,
        "command": earlier.get("command", command),
        "hardware": describe(device),
        "versions": {"torch": torch.__version__, "transformers": model.config.transformers_version},
    }
    # Results after the rows that they go with: they may complete those of an earlier evaluation.
    with written_whole(output_dir / "per_image.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **per_image)
    with written_whole(output_dir / "evaluation.json") as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n")
    with writing(output_dir / "README.md"):
        model_card.write(output_dir, checkpoint, config)
    return results


def _earlier(output_dir: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """
    The results of an evaluation, and its rows of `per_image.npz`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not (output_dir / "evaluation.json").exists():
        raise ValueError(f"{output_dir} has no evaluation.json to be completed; leave --missing out to ask everything.")
    try:
        with open(output_dir / "per_image.npz", "rb") as file, np.load(file) as rows:
            return read_json(output_dir / "evaluation.json"), dict(rows)
    except (OSError, ValueError, EOFError, BadZipFile, ZlibError) as error:
        raise ValueError(
            f"The evaluation in {output_dir}, evaluation.json and per_image.npz, is damaged ({error}); leave --missing "
            "out to ask everything."
        ) from None


def require_answers(results: dict, output_dir: Path, checkpoint: Path) -> None:
    """
    Raises:
        ValueError: a question failed, each with its error, and how to ask it again.
    """
    if failed := results["failed_questions"]:
        raise ValueError(
            f"{len(failed)} question(s) of the evaluation failed ({'; '.join(map(': '.join, failed.items()))}); all "
            f"else is written. Ask again: python -m training.evaluate {checkpoint} --output-dir {output_dir} --missing"
        )


def summary(results: dict, output_dir: Path, checkpoint: Path) -> str:
    """What came out, in a few lines, and where the rest of it is."""
    shown = [one for one in REPORTED if one.column is not None and one.of(results) is not None]
    values = [f"{one.column} {one.show([one.of(results)])}" for one in shown]
    seconds = results["evaluation_seconds"]
    slowest = sorted(seconds, key=seconds.get, reverse=True)[:3]
    looked_at = results["looked_at"]
    return "\n".join(
        [
            ", ".join(values),
            f"The evaluation took {sum(seconds.values()):.0f} s; the slowest questions: "
            + ", ".join(f"{name} {seconds[name]:.0f} s" for name in slowest),
            f"looked at   the {looked_at['split']} split of {looked_at['dataset']}",
            f"card        {output_dir / 'README.md'}",
            f"results     {output_dir / 'evaluation.json'}",
            f"pictures    {output_dir / 'figures'}",
            f"checkpoint  {checkpoint}",
        ]
    )
