"""
Pre-training with transformers' `Trainer`, for those whose data, callbacks or launcher are made for it; needs
`accelerate`. The recipes of this repository have a loop of their own, in `training/`.

Shape letters: B batch, V views, C channels, H height, W width.
"""

from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import ModelOutput

from .patch_codes import check


class HybridTrainer(Trainer):
    """
    `Trainer` for [`HybridForPreTraining`]: every argument, callback and metric of `Trainer` is there, and beside them
    the parts of the loss are logged (in evaluation with the prefix `eval_`), the loss is evaluated with labels and
    without, and the momentum encoder moves after each step of the optimizer.

    An example of the data holds `pixel_values` (V, C, H, W) in [-1, 1], the views of one image, and where the objective
    needs them `labels` (), `sample_ids` (), `boxes` (V, 4) and `teacher` (T,). `view_kinds` (V,) are the same for all
    images; all 0, clean, if unset. Batches have the images first, as `Trainer` expects. Where the last batch may hold a
    single image, which has no negatives, set `dataloader_drop_last=True`.

    Raises:
        ValueError: several GPUs in one process, examples without views, or kinds that differ between images.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process with {self.args.n_gpu} GPUs would split the views and not the images; give each GPU a "
                f"process: torchrun --nproc_per_node {self.args.n_gpu} ..."
            )
        # There is a loss whether or not a batch has labels.
        self.label_names = []
        self._parts = {True: _Means(), False: _Means()}  # in training, and in evaluation
        self.add_callback(_MoveMomentumEncoder)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        num_images = len(inputs["pixel_values"])
        loss, outputs = super().compute_loss(model, views_first(inputs), True, num_items_in_batch)
        self._parts[model.training].add(outputs, num_images)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        parts = self._parts[False].pop(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in parts.items()})
        return output

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = logs | self._parts[True].pop(self.accelerator)
        super().log(logs, *args, **kwargs)


def views_first(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch with the images first, pixel_values (B, V, C, H, W), as the model takes it: (V, B, C, H, W)."""
    pixel_values, kinds = inputs["pixel_values"], inputs.get("view_kinds")
    if pixel_values.dim() != 5:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch_size, num_views, num_channels, "
            "height, width): an example of the data holds all views of an image, (num_views, num_channels, height, "
            "width)."
        )
    inputs = inputs | {"pixel_values": pixel_values.transpose(0, 1)}
    if kinds is not None:
        check((kinds == kinds[:1]).all(), "view_kinds differ between the images of a batch; every image has the same.")
        inputs["view_kinds"] = kinds[0]
    if inputs.get("boxes") is not None:
        inputs["boxes"] = inputs["boxes"].transpose(0, 1)
    return inputs


class _MoveMomentumEncoder(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.update_momentum_encoder()


class _Means:
    """Means over images of the parts of a loss, kept on the device so that a step never waits for them."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.num_images = 0

    def add(self, outputs: ModelOutput, num_images: int) -> None:
        parts = {name: outputs[name] for name in ("contrastive_loss", "generative_loss") if name in outputs}
        for name, value in (parts | outputs.get("telemetry", {})).items():
            self.sums[name] = self.sums.get(name, 0) + num_images * value.detach().float()
        self.num_images += num_images

    def pop(self, accelerator) -> dict[str, float]:
        """The means over all processes; forgets them."""
        sums, num_images = self.sums, self.num_images
        self.sums, self.num_images = {}, 0
        if not sums:
            return {}
        totals = torch.stack([*sums.values(), torch.full_like(next(iter(sums.values())), num_images)])
        *means, _ = (totals := accelerator.reduce(totals, "sum")) / totals[-1]
        return dict(zip(sums, torch.stack(means).tolist(), strict=True))


__all__ = ["HybridTrainer"]
