"""What a run says: what is about to happen, its values while it trains, and what is wrong with them."""

import json
import math
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from modeling_hybrid import HybridForPreTraining

from ..config import PretrainConfig
from ..data.images import ImageStream, LevelsDataset
from ..data.views import Views
from ..disk import writing
from ..hardware import emulates_bf16


# Steps after which a run says how long it will take; the first ones, which warm up, do not count.
_WARM_UP, _MEASURED = 3, 10
# What the evaluation of a published recipe takes at most, at default settings: a share of the training, or so many
# seconds if that is more.
_EVALUATION_SHARE, _EVALUATION_SECONDS = 0.15, 180

# The name that trackers know a run by, and the folder of those that write files.
TRACKED = "pretrain"

# Beside the step in the progress bar.
_SHOWN = ("contrastive_loss", "generative_loss", "bits_per_dim", "images_per_second", "data_wait_share")


class Meter:
    """Means of tensors between two log lines, kept on the device so that a step never waits for it."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0) + value.detach().float()
                self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes; empties the meter."""
        means = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        means = dict(zip(self.sums, accelerator.reduce(means, "mean").tolist(), strict=True))
        self.sums, self.counts = {}, {}
        return means


class Log:
    """
    Where values go: to the trackers, to `log.jsonl` (which the training curves are drawn from) and to a progress bar.
    Only the main process writes.
    """

    def __init__(self, accelerator: Accelerator, path: Path, num_steps: int, step: int):
        self.accelerator = accelerator
        self.path = path
        is_main = accelerator.is_main_process
        self.bar = tqdm(total=num_steps, initial=step, unit="step", mininterval=1, disable=not is_main)

    def write(self, values: dict[str, float], step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        with writing(self.path.with_name(TRACKED)):
            self.accelerator.log(values, step=step)
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if any(name in values for name in _SHOWN):
            self.bar.set_postfix({name: f"{values[name]:.4g}" for name in _SHOWN if name in values})
        else:
            self.say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(line)


class Forecast:
    """How long a run will take, told once, from its first steps."""

    def __init__(self, num_steps: int, step: int):
        self.num_steps = num_steps
        self.first = step
        self.began = 0.0

    def after(self, step: int) -> str | None:
        """To be asked after each step; a sentence after one of the first, else `None`."""
        done = step - self.first
        if done == _WARM_UP:
            self.began = time.perf_counter()
        if done != _WARM_UP + _MEASURED:
            return None
        seconds = (time.perf_counter() - self.began) / _MEASURED
        left = timedelta(seconds=round(seconds * (self.num_steps - step)))
        evaluation = max(_EVALUATION_SHARE * seconds * self.num_steps, _EVALUATION_SECONDS)
        return (
            f"{seconds:.3g} s a step: the {self.num_steps - step:,} steps that are left take about {left} (h:mm:ss), "
            f"validation not counted; the evaluation at the end up to about {timedelta(seconds=round(evaluation))}."
        )


def require_finite(values: dict[str, float], step: int, config: PretrainConfig) -> None:
    """
    Raises:
        FloatingPointError: a loss or the gradient is infinite or not a number.
    """
    if config.optimization.precision == "fp16" and not math.isfinite(values.get("gradient_norm", 0)):
        # Single steps overflow by design and are skipped, until the loss scale has found its size.
        del values["gradient_norm"]
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(
            f"At step {step}, {', '.join(f'{name} is {value}' for name, value in wrong.items())}. Lower "
            "optimization.learning_rate, lengthen optimization.num_warmup_steps, or use optimization.precision=bf16 "
            "instead of fp16; the last checkpoint is kept."
        )


def describe(
    config: PretrainConfig,
    accelerator: Accelerator,
    model: HybridForPreTraining,
    train: LevelsDataset | ImageStream,
    views: Views,
    batch_size: int,
) -> str:
    """What is about to happen, to be said before it does; `batch_size` images of a process at a time."""
    model_config, num_processes = model.config, accelerator.num_processes
    num_images = batch_size * num_processes
    train_size = len(train) if isinstance(train, LevelsDataset) else "a stream of"
    lines = [
        f"{model.num_parameters(only_trainable=True):,} parameters; {train_size} training images of "
        f"{model_config.num_channels}x{model_config.image_size}x{model_config.image_size}, "
        f"{model_config.num_patches} patches of {model_config.num_codes} codes.",
        f"{num_processes} process(es) on {accelerator.device}, {num_images} images a pass, {len(views.kinds)} views "
        "each.",
    ]
    if model_config.has_contrast:
        positives, negatives = model.objective.counts(views.kinds.tolist(), num_images)
        name = model_config.objective["name"]
        lines.append(f"Objective {name}: each anchor sees {positives} positive(s) and {negatives} negative(s).")
        if "labels" in model.objective.needs:
            lines.append("Of these negatives, the images of the anchor's class are none.")
        if (steps := config.optimization.gradient_accumulation_steps) > 1:
            lines.append(
                f"Warning: accumulating gradients over {steps} passes enlarges the batch of the likelihood, but adds "
                "no negatives: each pass contrasts its own images only. For more negatives raise batch_size, and set "
                "optimization.chunk_size where memory is short."
            )
    if config.optimization.precision == "bf16" and emulates_bf16(accelerator.device):
        lines.append(
            "Warning: this processor has no instructions for bf16 and emulates it, several times slower than fp32; set "
            "optimization.precision=fp32."
        )
    if config.augmentation.num_augmented_views > 0 and len(views.augment) == 0:
        lines.append(
            "Warning: no augmentation is switched on, so the augmented views are the images themselves. Set the ranges "
            "of the section augmentation."
        )
    return "\n".join(lines)
