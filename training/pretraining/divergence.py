"""The pass that made a loss or a gradient infinite: kept in the folder of the run, to be computed again."""

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..data.batches import Position
from ..disk import writing
from ..hardware import RandomState, set_random_state
from ..plain_files import read_json


FOLDER = "diverged"


@dataclass
class Pass:
    """
    A forward and backward pass.

    Args:
        step: number of the optimizer step that it belongs to, from 1.
        position: of its batch in the training images, `None` for the first one.
        random_state: before its views were drawn.
        metrics: scalars by name, on the device.
    """

    step: int
    position: Position | None
    random_state: RandomState | None = None
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)

    def wrong(self, is_fp16: bool) -> dict[str, float]:
        """The metrics that are infinite or not a number; the gradient of a step in fp16 may be."""
        values = {name: float(value) for name, value in self.metrics.items()}
        skipped = {"gradient_norm"} if is_fp16 else set()
        return {k: v for k, v in values.items() if k not in skipped and not math.isfinite(v)}


def keep(run) -> str:
    """
    Write the first pass since the last log line that is not finite under `output_dir/diverged`, one pair of files for
    each process:

        process_R.safetensors   levels, what the model takes of them (`pixel_values`, `view_kinds`, ...), random state
        process_R.json          step, position, seed, the values, and the weights that led to it

    Args:
        run: a `training.pretraining.run.Run`.

    Returns:
        A sentence that says where it lies, and how to compute it again.
    """
    is_fp16 = run.config.optimization.precision == "fp16"
    bad = next((one for one in run.passes if one.wrong(is_fp16)), None)
    if bad is None:
        return "No single pass on this process shows it."
    levels, sample_ids, _ = next(run.batches_from(bad.position))
    set_random_state(bad.random_state, run.accelerator.device)
    inputs = run.inputs(levels.to(run.accelerator.device), sample_ids)
    cpu, of_accelerator = bad.random_state
    tensors = inputs | {"levels": levels, "random_state": cpu}
    if of_accelerator is not None:
        tensors["random_state_of_accelerator"] = of_accelerator
    saved = run.output_dir / "state" / "progress.json"
    from_step = read_json(saved)["progress"]["step"] if saved.exists() else 0
    described = {
        "step": bad.step,
        "position": bad.position,
        "process": run.accelerator.process_index,
        "num_processes": run.accelerator.num_processes,
        "seed": run.config.seed,
        "values": {name: str(value) for name, value in bad.wrong(is_fp16).items()},
        "weights": f"those of step {from_step}" + (" in state/" if from_step else ", from the seed") + ", trained on",
    }
    path = path_of(run)
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    folder = run.output_dir
    command = shlex.join(["python", "-m", "training.replay", str(folder), "--config", str(folder / "config.yaml")])
    return f"The pass is that of step {bad.step}, kept as {path}; to compute it again: {command}"


def path_of(run) -> Path:
    return run.output_dir / FOLDER / f"process_{run.accelerator.process_index}.safetensors"


def replay(run) -> str:
    """
    Train from where the run stands up to the pass that [`keep`] has kept, and compute that one.

    Args:
        run: a `training.pretraining.run.Run`.

    Returns:
        What is not finite: of the weights before it, of the losses and of their gradient.

    Raises:
        ValueError: nothing has been kept, or the state is past it.
    """
    path = path_of(run)
    if not path.exists():
        raise ValueError(f"{path} does not exist: no pass of this run was infinite or not a number.")
    described, tensors = read_json(path.with_suffix(".json")), load_file(path)
    model, device = run.bare_model.train(), run.accelerator.device
    for levels, sample_ids in run.batches():
        if json.loads(json.dumps(run.passes[-1].position)) == described["position"]:
            break
        run.step(levels, sample_ids)
    else:
        raise ValueError(f"The state of {run.output_dir} is past step {described['step']}, which cannot be repeated.")
    state = tensors.pop("random_state"), tensors.pop("random_state_of_accelerator", None)
    if not torch.equal(tensors.pop("levels"), levels.cpu()):
        raise ValueError(f"The images of the run have changed since {path} was written; restore them.")
    set_random_state(state, device)
    run.views(levels)  # what comes after draws on
    weights = _not_finite(model.named_parameters())
    model.zero_grad()
    kinds = tensors.pop("view_kinds")
    with run.accelerator.autocast():
        output = model(view_kinds=kinds, **{name: tensor.to(device) for name, tensor in tensors.items()})
    output.loss.backward()
    gradients = _not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    values = {name: value for name, value in run.metrics(output).items() if value is not None}
    return "\n".join(
        [
            f"Step {described['step']}: " + ", ".join(f"{name} {value.item():.6g}" for name, value in values.items()),
            f"Weights before it that are not finite: {', '.join(weights) or 'none'}.",
            f"Gradients that are not finite: {', '.join(gradients) or 'none'}.",
        ]
    )


def _not_finite(named) -> list[str]:
    return [name for name, tensor in named if not tensor.isfinite().all()]
