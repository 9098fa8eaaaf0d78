"""What a run looks at on its way: losses, features and gradients on the validation split."""

import torch
from torch.distributed.fsdp import FSDPModule

from ..embedding import embed
from ..evaluation.probes import Labelled, nearest_neighbours
from ..evaluation.spread import spread
from ..hardware import fork_rng
from ..optimization.gradients import gradient_cosine
from .log import Meter
from .run import Run


@torch.no_grad()
def validate(run: Run) -> dict[str, float]:
    """
    Both losses on views of the validation split (the same at every call), the cosine of their gradients, and the
    spread and kNN accuracy of features.

    The processes share the images out, in batches of about equal size, none smaller than those of the training.
    """
    model, config, accelerator = run.bare_model, run.config, run.accelerator
    model.eval()
    meter = Meter()
    validation = run.splits.validation
    levels = validation.all_levels(config.evaluation.max_images)
    labels = None if run.train_labels is None else validation.labels(config.evaluation.max_images)
    num_images = len(levels) // accelerator.num_processes
    mine = torch.arange(accelerator.process_index, len(levels), accelerator.num_processes)[:num_images]

    def inputs_of(part: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = run.views(levels[part].to(accelerator.device))
        if labels is not None:
            inputs["labels"] = torch.from_numpy(labels[part]).to(accelerator.device)
        if run.teacher is not None:
            inputs["teacher"] = run.teacher["validation"][part].to(accelerator.device)
        return inputs

    with fork_rng(accelerator.device):
        torch.manual_seed(0)
        for part in mine.tensor_split(max(1, num_images // run.batch_size)):
            run.watch.beat()
            with accelerator.autocast():
                meter.add(run.metrics(model(**inputs_of(part))))
        # No more images at a time than a training step holds.
        some = mine[: config.optimization.chunk_size or run.batch_size]
        with accelerator.autocast():
            meter.add({"gradient_cosine": gradient_cosine(model, inputs_of(some))})
    results = meter.pop(accelerator)
    if isinstance(model, FSDPModule):
        # All layers are gathered as they are called, by all processes; the rest has to be asked for.
        model.unshard()
        results |= judge_features(run)
        model.reshard()
    elif accelerator.is_main_process:
        results |= judge_features(run)
    model.train()
    return {f"validation/{name}": value for name, value in results.items()}


def judge_features(run: Run, max_images: int = 5000) -> dict[str, float]:
    """Spread of the features of the validation split, and where there are labels their kNN accuracy."""
    model, batch_size = run.bare_model, run.config.evaluation.batch_size
    validation = embed(model, run.splits.validation.all_levels(max_images), batch_size, False).features
    results = spread(validation)
    if run.splits.class_names is not None:
        train = embed(model, run.splits.reference.all_levels(max_images), batch_size, False).features
        splits = (run.splits.reference, train), (run.splits.validation, validation)
        train, validation = (Labelled(features, split.labels(max_images)) for split, features in splits)
        results["knn_accuracy"] = float(nearest_neighbours(train, validation, validation).mean())
    return results
