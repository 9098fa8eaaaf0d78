"""
What linear probes read from the codes that SepCLR keeps apart.

Shape letters: N images, D width of a row, R runs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.objectives.sep_clr import SepCLR

from ..config import PretrainConfig
from ..data.splits import load_splits
from ..embedding import embed
from ..evaluation.probes import Labelled, fit_linear, is_correct
from .significance import as_json, paired_difference


# What is read from which code, by the key of the values: an accuracy is to be high, a leak to be low.
READ = {
    "common_accuracy": ("common", "common"),
    "salient_accuracy": ("salient", "salient"),
    "common_leak": ("common", "salient"),
    "salient_leak": ("salient", "common"),
}


def codes_of(folder: Path, config: PretrainConfig, common_column: str) -> dict[str, np.ndarray]:
    """
    Which test images are read rightly, (N,) booleans by key of [`READ`]; of a model without such codes, from its
    projections, whatever the code.

    Raises:
        ValueError: the data has no such column, or not every image has a class in it.
    """
    model = HybridForPreTraining.from_pretrained(folder / "model").eval()
    background = model.objective.background if isinstance(model.objective, SepCLR) else 0
    columns, correct = {"common": common_column, "salient": config.data.label_column}, {}
    for factor, column in columns.items():
        splits = load_splits(replace(config.data, label_column=column), model.config)
        if splits.class_names is None:
            raise ValueError(f"data.dataset={config.data.dataset!r} has no classes in its column {column!r}.")
        rows = []
        for split in (splits.reference, splits.validation, splits.test):
            found, labels = codes(model, split.all_levels()), split.labels()
            # Only targets have it.
            used = labels != background if factor == "salient" else np.ones(len(labels), bool)
            rows.append({name: Labelled(part[used], labels[used]) for name, part in found.items()})
        for key, (wanted, code) in READ.items():
            if wanted == factor:
                train, validation, test = (part[code] for part in rows)
                correct[key] = is_correct(fit_linear(train, validation), test)
    return correct


@torch.no_grad()
def codes(model: HybridForPreTraining, levels: torch.Tensor) -> dict[str, np.ndarray]:
    """The common and the salient code (N, D) of levels (N, C, H, W); the projections for both where there are none."""
    features = embed(model, levels, batch_size=256, with_likelihood=False).features
    rows = model.projector(torch.from_numpy(features).to(model.device))
    if isinstance(model.objective, SepCLR):
        both = {"common": model.objective.common(rows), "salient": model.objective.salient(rows)}
    else:
        both = {"common": rows, "salient": rows}
    return {name: part.cpu().numpy() for name, part in both.items()}


def arms(ours: list[dict[str, np.ndarray]], controls: list[dict[str, np.ndarray]], seeds: list[int]) -> dict[str, Any]:
    """What [`codes_of`] gives of R runs and their controls, as arms for the table of systems."""
    found = {
        "control": {"title": "InfoNCE, its projections undivided"},
        "sep_clr": {"title": "SepCLR, two codes", "system": "sep_clr", "control": "control"},
    }
    for arm, runs in zip(found.values(), (controls, ours), strict=True):
        arm["runs"] = [
            {"seed": seed} | {key: float(right.mean()) for key, right in run.items()}
            for seed, run in zip(seeds, runs, strict=True)
        ]
    between = {
        key: paired_difference(*(np.stack([run[key] for run in runs]) for runs in (ours, controls))) for key in READ
    }
    found["sep_clr"]["minus_control"] = as_json(between)
    return found
