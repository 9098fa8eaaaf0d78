"""How many steps each arm gets, so that all spend the same: steps, floating point operations or seconds."""

import json
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_hybrid import HybridForPreTraining

from ..config import PretrainConfig, load_config
from ..data.views import Views
from ..hardware import best_device, synchronize
from ..optimization.gradients import gradients_of_losses
from ..optimization.optimizers import build_optimizers
from .arms import ARMS, HYBRID, Contest


def steps_of_equal_budget(contest: Contest, config: PretrainConfig) -> dict[str, int]:
    """
    Steps of each arm, such that all spend what the hybrid spends in the steps of the configuration: steps, floating
    point operations, or seconds, which are measured on this machine once, before the first run.
    """
    configs = {name: load_config(contest.config, [*contest.overrides, *arm.overrides]) for name, arm in ARMS.items()}
    measured = contest.output_dir / "seconds_per_step.json"
    if contest.budget == "seconds" and measured.exists():
        costs = json.loads(measured.read_text())
    else:
        cost = {"steps": lambda config: 1, "flops": flops_per_step, "seconds": seconds_per_step}[contest.budget]
        costs = {name: cost(of_arm) for name, of_arm in configs.items()}
    if contest.budget == "seconds":
        measured.write_text(json.dumps(costs, indent=2) + "\n")
    return {name: round(config.optimization.num_steps * costs[HYBRID] / cost) for name, cost in costs.items()}


class Step:
    """A step on a batch of noise, as the training does it: to be measured, not to learn."""

    def __init__(self, config: PretrainConfig):
        self.config = config
        num_images = config.optimization.batch_size
        model_config = config.model_config(num_train_images=num_images)
        self.device = best_device()
        self.model = HybridForPreTraining(model_config).to(self.device)
        self.optimizers = build_optimizers(self.model, config.optimization)
        self.views = Views(config.augmentation, model_config.image_size, model_config.num_levels, with_boxes=True)
        self.views.to(self.device)
        shape = (num_images, model_config.num_channels, model_config.image_size, model_config.image_size)
        self.levels = torch.randint(0, model_config.num_levels, shape, dtype=torch.uint8).to(self.device)
        ids = torch.arange(num_images, device=self.device)
        self.known = {"sample_ids": ids, "labels": ids % 2}

    def __call__(self) -> None:
        inputs, parameters = self.views(self.levels) | self.known, list(self.model.parameters())
        if self.config.optimization.separate_moments:
            _, gradients = gradients_of_losses(self.model, inputs, parameters)
        else:
            gradients = [torch.autograd.grad(self.model(**inputs).loss, parameters, allow_unused=True)]
        for optimizer, of_loss in zip(self.optimizers, gradients, strict=True):
            for parameter, gradient in zip(parameters, of_loss, strict=True):
                parameter.grad = gradient
            optimizer.step()


def flops_per_step(config: PretrainConfig) -> float:
    """Floating point operations of the matrix products of a step, forward and backward."""
    step = Step(config)
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def seconds_per_step(config: PretrainConfig, num_repeats: int = 5) -> float:
    step, seconds = Step(config), []
    for _ in range(num_repeats + 1):
        start = time.perf_counter()
        step()
        synchronize(step.device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
