"""
One run: what it holds, and one step of it, which is a forward and a backward pass.

`loop.py` makes the steps, `validation.py` and `checkpoints.py` are what it does between them.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch.distributed.fsdp import register_fsdp_forward_method

from modeling_hybrid import HybridConfig, HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.likelihood import bits_per_dim
from modeling_hybrid.objectives.base import CLEAN
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput

from ..config import PretrainConfig
from ..data.batches import Batch, Lanes, Position, lanes_of, training_batches
from ..data.images import LevelsDataset
from ..data.splits import load_splits
from ..data.views import Views
from ..disk import writing
from ..evaluation.requirements import require_enough
from ..hardware import random_state
from ..optimization.gradient_cache import cached_backward
from ..optimization.gradients import average_replicated, whole
from ..optimization.optimizers import build_optimizers, build_schedule
from ..optimization.separate_moments import SeparateSteps
from ..plain_files import require_plain_checkpoint
from .divergence import Pass
from .log import TRACKED
from .processes import Termination, main_process_first
from .teacher import teacher_features
from .watch import Watch


@dataclass
class Progress:
    """
    Where a run stands.

    Args:
        num_processes: that it began with; a global batch is `optimization.batch_size` images of each of these.
        position: in the training images, of all lanes that they are read in.
    """

    num_processes: int
    step: int = 0
    position: Position = field(default_factory=list)
    seconds: float = 0.0
    best_validation_loss: float = float("inf")


class Run:
    """What one run holds: model, data, optimizers and schedules, all on their devices."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.output_dir = Path(config.output_dir)
        optimization = config.optimization
        accelerator.print(f"Reading data.dataset={config.data.dataset!r}, and converting its images ...")
        with main_process_first():
            self.splits = load_splits(config.data, config.model_config(), config.evaluation.max_images)
        self._check_validation()
        require_enough(self.splits, config.evaluation)
        train = self.splits.train
        self.teacher = self._ask_teacher() if config.data.teacher is not None else None
        num_images = len(train) if isinstance(train, LevelsDataset) else 1
        teacher_size = 1 if self.teacher is None else self.teacher["train"].shape[1]
        model_config = config.model_config(num_images, teacher_size)
        set_seed(config.seed, device_specific=True)
        accelerator.print("Building the model ...")
        model = self._build_model(model_config)
        needs = model.objective.needs if model_config.has_contrast else frozenset()
        self.train_labels = self._train_labels() if "labels" in needs else None
        self.clusters = None if config.data.clusters is None else self._clusters()
        if optimization.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if optimization.compile:
            # Each loss has a gradient of its own through one graph, whose buffers must outlive the first.
            torch._functorch.config.donated_buffer = False
            model.compile()
        self.image_processor = HybridImageProcessor.from_config(model_config)
        self.views = Views(
            config.augmentation, model_config.image_size, model_config.num_levels, with_boxes="boxes" in needs
        )
        self.views.to(accelerator.device)
        # Of those that are scored, which are the first ones.
        scored = self.views.kinds.tolist()[: model_config.num_generative_views]
        self.clean_views = [i for i, kind in enumerate(scored) if kind == CLEAN]
        if accelerator.is_fsdp2:
            # What DDP does by itself: all begin with the weights of the first.
            broadcast(list(model.state_dict().values()))
        optimizers = build_optimizers(model, optimization, accelerator.is_fsdp2)
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        if accelerator.is_fsdp2:
            # Chunks call it; with the parameters that it gathers, all that follows on its states can be computed.
            register_fsdp_forward_method(self.model, "represent")
        self.separate_steps = None
        if optimization.separate_moments:
            limits = optimization.max_gradient_norm, optimization.chunk_size
            self.separate_steps = SeparateSteps(accelerator, self.model, self.optimizers, *limits)
        # Not prepared: Accelerate would advance them once per process and step.
        self.schedules = [build_schedule(optimizer, optimization) for optimizer in self.optimizers]
        self.position: Position | None = None
        # Since the last look at the losses: one of them may turn out to have made them infinite.
        self.passes: deque[Pass] = deque(maxlen=config.logging.log_every * optimization.gradient_accumulation_steps)
        self.progress = Progress(accelerator.num_processes)
        # For images, since the last log line.
        self.seconds_waited = 0.0
        self.termination = Termination(accelerator)
        self.watch = Watch(accelerator.process_index, accelerator.num_processes, config.stall_seconds)

    def _check_validation(self) -> None:
        smallest = max(2, self.accelerator.num_processes)
        if len(self.splits.validation) < smallest:
            raise ValueError(
                f"The validation split of {len(self.splits.validation)} image(s) is too small: the losses need at "
                f"least {smallest}. Raise data.validation_fraction or give a data.validation_split."
            )

    def _train_labels(self):
        """Labels (N,) of the training images, for an objective that learns from them."""
        labels, data = self.splits.train.labels(), self.config.data
        if labels is None:
            raise ValueError(
                f"Objective {self.config.model_config().objective['name']!r} learns from labels, but not every image "
                f"of data.dataset={data.dataset!r} has one in data.label_column={data.label_column!r}."
            )
        return labels

    def _build_model(self, model_config: HybridConfig) -> HybridForPreTraining:
        if (checkpoint := self.config.initial_model) is None:
            return HybridForPreTraining(model_config)
        require_plain_checkpoint(Path(checkpoint))
        try:
            return HybridForPreTraining.from_pretrained(checkpoint, config=model_config, dtype=torch.float32)
        except RuntimeError as error:
            raise ValueError(f"initial_model={checkpoint!r} is of another size than section 'model': {error}") from None

    def _clusters(self) -> np.ndarray:
        """Of each training image, (N,)."""
        path, num_images = self.config.data.clusters, len(self.splits.train)
        try:
            clusters = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.clusters={path!r} cannot be read as a .npy file: {error}") from None
        if clusters.shape != (num_images,) or clusters.dtype.kind not in "iu":
            raise ValueError(
                f"data.clusters={path!r} holds {clusters.dtype} of shape {clusters.shape}, but an integer for each of "
                f"the {num_images} training images was expected."
            )
        return clusters

    def _ask_teacher(self) -> dict[str, torch.Tensor]:
        """Features (N, T) of the images of the training and of the validation split."""
        teacher, max_images = self.config.data.teacher, self.config.evaluation.max_images
        self.accelerator.print(f"Asking data.teacher={teacher!r} about all images ...")
        levels = self.splits.train.all_levels(), self.splits.validation.all_levels(max_images)
        features = teacher_features(teacher, self.config.model_config(), *levels)
        return dict(zip(("train", "validation"), features, strict=True))

    @property
    def bare_model(self) -> HybridForPreTraining:
        return self.accelerator.unwrap_model(self.model)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Levels (B, C, H, W) and indices (B,), `None` in a stream, for the passes from here to the last step."""
        iterator = self.batches_from(self.position)
        while self.progress.step < self.config.optimization.num_steps:
            began = time.perf_counter()
            levels, sample_ids, after = next(iterator)
            self.seconds_waited += time.perf_counter() - began
            self.passes.append(Pass(self.progress.step + 1, self.position))
            self.position = after
            yield levels.to(self.accelerator.device, non_blocking=True), sample_ids

    @property
    def batch_size(self) -> int:
        """Images of a pass of this process, whose number is that of the global batch over that of the processes."""
        return self.config.optimization.batch_size * self.progress.num_processes // self.accelerator.num_processes

    @property
    def lanes(self) -> Lanes:
        return lanes_of(self.splits.train, self.config.optimization.batch_size, self.progress.num_processes)

    def batches_from(self, position: Position | None) -> Iterator[Batch]:
        """What [`training_batches`] gives from a position on, `None` for the beginning."""
        return training_batches(
            self.splits.train,
            batch_size=self.batch_size,
            seed=self.config.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            start=position,
            lanes=self.lanes,
            num_workers=self.config.data.num_workers,
            clusters=self.clusters,
        )

    def inputs(self, levels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """What the model takes of levels (B, C, H, W); views are drawn anew at each call."""
        inputs = self.views(levels)
        if sample_ids is not None:
            inputs["sample_ids"] = sample_ids.to(levels.device)
            if self.train_labels is not None:
                inputs["labels"] = torch.from_numpy(self.train_labels[sample_ids]).to(levels.device)
            if self.teacher is not None:
                inputs["teacher"] = self.teacher["train"][sample_ids].to(levels.device)
        return inputs

    def step(self, levels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """One forward and backward pass over levels (B, C, H, W), and an optimizer step where one is due."""
        self.watch.beat()
        state = random_state(levels.device)
        with self.accelerator.accumulate(self.model):
            inputs = self.inputs(levels, sample_ids)
            if self.separate_steps is not None:
                output, norms = self.separate_steps(inputs)
            else:
                output, norms = self.joint_step(inputs)
        if self.accelerator.sync_gradients:
            self.bare_model.update_momentum_encoder()
            for schedule in self.schedules:
                schedule.step()
            self.progress.step += 1
        metrics = self.metrics(output) | (output.telemetry or {}) | norms
        metrics = {name: value.detach() for name, value in metrics.items() if value is not None}
        if self.passes:
            self.passes[-1].random_state, self.passes[-1].metrics = state, metrics
        return metrics

    def joint_step(self, inputs: dict[str, torch.Tensor]) -> tuple[HybridForPreTrainingOutput, dict[str, torch.Tensor]]:
        """Along the gradient of the sum of the losses. The model's output, and the norm of the gradient by its name."""
        optimization, (optimizer,), norms = self.config.optimization, self.optimizers, {}
        if optimization.chunk_size > 0:
            output = cached_backward(self.accelerator, self.model, inputs, optimization.chunk_size)
        else:
            with self.accelerator.autocast():
                output = self.model(**inputs)
            self.accelerator.backward(output.loss)
            if self.accelerator.sync_gradients:
                average_replicated(self.accelerator, self.model)
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), optimization.max_gradient_norm)
            norms["gradient_norm"] = whole(norm)
        optimizer.step()
        optimizer.zero_grad()
        return output, norms

    def metrics(self, output: HybridForPreTrainingOutput) -> dict[str, torch.Tensor | None]:
        """The terms of the loss, and bits per dimension of the clean views where there are any."""
        bits = None
        if output.nll is not None:
            nll = output.nll[self.clean_views] if self.clean_views else output.nll
            bits = bits_per_dim(nll.mean(), self.bare_model.config)
        return {
            "loss": output.loss,
            "contrastive_loss": output.contrastive_loss,
            "generative_loss": output.generative_loss,
            # Given the latent, where there is one: those are no bits of p(image).
            "conditional_bits_per_dim" if self.bare_model.config.has_latent else "bits_per_dim": bits,
        }

    def close(self) -> None:
        """Finish the trackers, and let the processes part."""
        # First the wrapped model, which holds the process group. Were it the last to do so, the group would end under
        # Python's lock, and wait for a thread of its own that may be waiting for that lock.
        self.separate_steps = None
        self.model, *self.optimizers = self.accelerator.free_memory(self.model, *self.optimizers)
        with writing(self.output_dir / TRACKED):
            self.accelerator.end_training()
