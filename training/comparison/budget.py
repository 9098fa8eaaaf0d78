"""How many steps each arm gets, so that all spend the same: steps, floating point operations or seconds."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._functorch.config

from modeling_hybrid import HybridForPreTraining

from ..config import PretrainConfig, load_config
from ..data.views import Views
from ..hardware import best_device, describe, synchronize
from ..optimization.gradients import gradients_of_losses
from ..optimization.optimizers import build_optimizers
from .arms import ARMS, HYBRID, Contest
from .matrix_products import MatrixProducts
from .sweep import threads_of


BUDGETS = ("steps", "flops", "seconds")
# Above this load (processes that run or wait, mean of a minute), something else runs on the machine.
MAX_LOAD = 0.5
# Of the noise that a step is measured on.
_NUM_CLASSES, _TEACHER_SIZE = 10, 256
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def equal_budget(contest: Contest, config: PretrainConfig) -> dict[str, Any]:
    """
    What is `equal`, and with it `num_steps` of each arm, such that all spend what the hybrid spends in the steps of the
    configuration; with the `cost` of a step and how it was `measured`.
    """
    configs = {name: load_config(contest.config, contest.overrides_of(name)) for name in ARMS}
    costs, details = dict.fromkeys(ARMS, 1), {}
    if contest.budget == "flops":
        costs = {name: flops_per_step(of_arm) for name, of_arm in configs.items()}
        details = {"cost": costs, "measured": "operations of the matrix products of a step"}
    elif contest.budget == "seconds":
        details = _measured_once(configs, contest.jobs, contest.output_dir / "seconds_per_step.json")
        costs = details["cost"]
    num_steps = {name: round(config.optimization.num_steps * costs[HYBRID] / cost) for name, cost in costs.items()}
    return {"equal": contest.budget, "num_steps": num_steps, **details}


def _measured_once(configs: dict[str, PretrainConfig], jobs: int, path: Path) -> dict[str, Any]:
    """Before the first run; what was measured holds for the runs that are added later."""
    if not path.exists():
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        if load > MAX_LOAD:
            print(
                f"warning: the machine has a load of {load:.1f}. For equal seconds let nothing else run on it, remove "
                f"{path}, and give the command again.",
                file=sys.stderr,
            )
        costs = seconds_per_step(configs, threads_of(jobs))
        where = describe(best_device()) if best_device().type != "cpu" else f"{threads_of(jobs)} thread(s)"
        measured = f"seconds of a step, the arms in turn, {where}, after a minute of load {load:.1f}"
        path.write_text(json.dumps({"cost": costs, "measured": measured}, indent=2) + "\n")
    return json.loads(path.read_text())


def step_ratio(ours: PretrainConfig, control: PretrainConfig, jobs: int, path: Path) -> float:
    """Seconds of a step of `ours` over those of one of `control`; what was measured goes to a file, and holds."""
    cost = _measured_once({"ours": ours, "control": control}, jobs, path)["cost"]
    return cost["ours"] / cost["control"]


class Step:
    """A step on a batch of noise, as the training does it: to be measured, not to learn."""

    def __init__(self, config: PretrainConfig, is_compiled: bool = False):
        self.config = config
        num_images = config.optimization.batch_size
        # So many that none of the steps ends an epoch, which some objectives do more at.
        model_config = config.model_config(num_train_images=100 * num_images, teacher_size=_TEACHER_SIZE)
        self.device = best_device()
        self.model = HybridForPreTraining(model_config).to(self.device)
        if is_compiled:
            torch._functorch.config.donated_buffer = False  # as in a run
            self.model.compile()
        self.optimizers = build_optimizers(self.model, config.optimization)
        self.views = Views(config.augmentation, model_config.image_size, model_config.num_levels, with_boxes=True)
        self.views.to(self.device)
        shape = (num_images, model_config.num_channels, model_config.image_size, model_config.image_size)
        self.levels = torch.randint(0, model_config.num_levels, shape, dtype=torch.uint8).to(self.device)
        ids = torch.arange(num_images, device=self.device)
        teacher = torch.randn(num_images, _TEACHER_SIZE).to(self.device)
        self.known = {"sample_ids": ids, "labels": ids % _NUM_CLASSES, "teacher": teacher}

    def __call__(self) -> None:
        inputs = self.views(self.levels) | self.known
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        dtype = _AUTOCAST.get(self.config.optimization.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            if self.config.optimization.separate_moments:
                _, gradients = gradients_of_losses(self.model, inputs, parameters)
            else:
                gradients = [torch.autograd.grad(self.model(**inputs).loss, parameters, allow_unused=True)]
        for optimizer, of_loss in zip(self.optimizers, gradients, strict=True):
            for parameter, gradient in zip(parameters, of_loss, strict=True):
                parameter.grad = gradient
            optimizer.step()
        self.model.update_momentum_encoder()

    def seconds(self) -> float:
        # A thread that is alone has a clock which stands still while others have the processor.
        is_alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if is_alone else time.perf_counter
        start = clock()
        self()
        synchronize(self.device)
        return clock() - start


def flops_per_step(config: PretrainConfig) -> float:
    """Floating point operations of the matrix products of a step, forward and backward."""
    step = Step(config)
    with MatrixProducts() as products:
        step()
    return float(products.flops())


def seconds_per_step(configs: dict[str, PretrainConfig], num_threads: int, num_turns: int = 15) -> dict[str, float]:
    """Median seconds of a step of each, with the threads of a run; they take turns, of which the first warms up."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        steps = {name: Step(config, config.optimization.compile) for name, config in configs.items()}
        turns = [{name: step.seconds() for name, step in steps.items()} for _ in range(1 + num_turns)]
    finally:
        torch.set_num_threads(threads_before)
    return {name: float(np.median([turn[name] for turn in turns[1:]])) for name in configs}
