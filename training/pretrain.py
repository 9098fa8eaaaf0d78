"""
Pre-training, from a configuration to a checkpoint with its evaluation and model card.

    python -m training.pretrain training/configs/digits.yaml [section.key=value ...]
    accelerate launch -m training.pretrain training/configs/digits.yaml
    torchrun --nproc_per_node 8 -m training.pretrain training/configs/digits.yaml

`pretrain` shows the whole run in order; `Run.step` is one forward and backward pass.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm.auto import tqdm
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.likelihood import bits_per_dim
from modeling_hybrid.modeling_hybrid import HybridForPreTrainingOutput
from modeling_hybrid.objectives import objective_class
from modeling_hybrid.objectives.base import CLEAN

from .augmentation import Views
from .batches import Position, training_loader
from .config import OptimizationConfig, PretrainConfig, load_config
from .data import LevelsDataset, load_splits
from .evaluate import evaluate_run
from .evaluation.embedding import embed
from .evaluation.health import collapse, gradient_cosine, spread
from .evaluation.probes import Labelled, nearest_neighbours
from .gradient_cache import cached_backward
from .output_folder import forget_after, new_partial, open_output_dir, partial_of, recover_folder, replace_folder
from .separate_moments import separate_steps


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint. `positions` are those of the processes in their training images."""

    step: int = 0
    positions: list[Position] = field(default_factory=list)
    seconds: float = 0.0
    best_validation_loss: float = float("inf")

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)


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


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process alone, then the others; where it fails, they fail as well and do not wait for it in vain."""
    is_main, failure = PartialState().is_main_process, [None]
    if not is_main:
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise ValueError(failure[0])
    try:
        yield
    except Exception as error:
        failure = [str(error)]
        raise
    finally:
        if is_main:
            broadcast_object_list(failure)


def prepare_accelerator(config: PretrainConfig) -> Accelerator:
    """
    Raises:
        ValueError: a tracker that Accelerate does not know, or whose package is not installed.
    """
    installed = {tracker.value for tracker in get_available_trackers()}
    for tracker in config.logging.trackers:
        if tracker not in installed:
            reason = "its package is not installed" if tracker in LOGGER_TYPE_TO_CLASS else "it is unknown"
            raise ValueError(
                f"logging.trackers={config.logging.trackers}: {tracker!r} cannot be used, {reason}; install it, or "
                f"choose among {', '.join(sorted(installed))}, or none by logging.trackers=[]."
            )
    model_config = config.model_config()
    # Without a loss, or with an objective that reads no pooled features, some parameters get no gradient.
    some_unused = (
        min(model_config.contrastive_weight, model_config.generative_weight) == 0
        or "projections" not in objective_class(model_config.objective["name"]).needs
    )
    return Accelerator(
        # Told so, it joins processes that have no accelerator; else each of them would train alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no" if config.optimization.precision == "fp32" else config.optimization.precision,
        gradient_accumulation_steps=config.optimization.gradient_accumulation_steps,
        log_with=list(config.logging.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[
            # The state of objectives is equal on all processes by itself.
            DistributedDataParallelKwargs(find_unused_parameters=some_unused, broadcast_buffers=False),
            # The others wait while the main process converts the images.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ],
    )


class Run:
    """What one run holds: model, data, optimizer and schedule, all on their devices."""

    def __init__(self, config: PretrainConfig, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.output_dir = Path(config.output_dir)
        optimization, model_config = config.optimization, config.model_config()
        with main_process_first():
            self.splits = load_splits(config.data, model_config, max_streamed=config.evaluation.max_images or 2000)
        smallest = max(2, accelerator.num_processes)
        if len(self.splits.validation) < smallest:
            raise ValueError(
                f"The validation split of {len(self.splits.validation)} image(s) is too small: the losses need at "
                f"least {smallest}. Raise data.validation_fraction or give a data.validation_split."
            )

        train = self.splits.train
        if isinstance(train, LevelsDataset):
            model_config = config.model_config(num_train_images=len(train))
        set_seed(config.seed, device_specific=True)
        model = HybridForPreTraining(model_config)
        needs = model.objective.needs if model_config.contrastive_weight > 0 else frozenset()
        self.train_labels = train.labels() if "labels" in needs else None
        if "labels" in needs and self.train_labels is None:
            raise ValueError(
                f"Objective {model_config.objective['name']!r} learns from labels, but not every image of "
                f"data.dataset={config.data.dataset!r} has one in data.label_column={config.data.label_column!r}."
            )
        if optimization.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if optimization.compile:
            model.compile()
        self.image_processor = HybridImageProcessor.from_config(model_config)
        self.views = Views(
            config.augmentation, model_config.image_size, model_config.num_levels, with_boxes="boxes" in needs
        )
        self.views.to(accelerator.device)
        self.clean_views = [i for i, kind in enumerate(self.views.kinds.tolist()) if kind == CLEAN]
        self.model, *self.optimizers = accelerator.prepare(model, *build_optimizers(model, optimization))
        # Not prepared: Accelerate would advance them once per process and step.
        self.schedules = [
            get_cosine_with_min_lr_schedule_with_warmup(
                optimizer,
                optimization.num_warmup_steps,
                optimization.num_steps,
                min_lr_rate=optimization.final_learning_rate_share,
            )
            for optimizer in self.optimizers
        ]
        self.position: Position = (0, 0)
        self.progress = Progress()
        accelerator.register_for_checkpointing(*self.schedules, self.progress)

    @property
    def bare_model(self) -> HybridForPreTraining:
        return self.accelerator.unwrap_model(self.model)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Levels (B, C, H, W) and indices (B,), `None` in a stream, for the passes from here to the last step."""
        config, accelerator = self.config, self.accelerator
        loader = training_loader(
            self.splits.train,
            read_ahead=config.data.num_workers > 0,
            batch_size=config.optimization.batch_size,
            seed=config.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            start=self.position,
        )
        iterator = iter(loader)
        while self.progress.step < config.optimization.num_steps:
            levels, sample_ids, self.position = next(iterator)
            yield levels.to(accelerator.device, non_blocking=True), sample_ids

    def step(self, levels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """One forward and backward pass over levels (B, C, H, W), and an optimizer step where one is due."""
        with self.accelerator.accumulate(self.model):
            inputs = self.views(levels)
            if sample_ids is not None:
                inputs["sample_ids"] = sample_ids.to(levels.device)
                if self.train_labels is not None:
                    inputs["labels"] = torch.from_numpy(self.train_labels[sample_ids]).to(levels.device)
            if self.config.optimization.separate_moments:
                norm = self.config.optimization.max_gradient_norm
                output, norms = separate_steps(self.accelerator, self.bare_model, self.optimizers, inputs, norm)
            else:
                output, norms = self.joint_step(inputs)
        if self.accelerator.sync_gradients:
            self.bare_model.update_momentum_encoder()
            for schedule in self.schedules:
                schedule.step()
            self.progress.step += 1
        return self.metrics(output) | (output.telemetry or {}) | norms

    def joint_step(self, inputs: dict[str, torch.Tensor]) -> tuple[HybridForPreTrainingOutput, dict[str, torch.Tensor]]:
        """Along the gradient of the sum of the losses. The model's output, and the norm of the gradient by its name."""
        optimization, (optimizer,), norms = self.config.optimization, self.optimizers, {}
        if optimization.chunk_size > 0:
            output = cached_backward(self.accelerator, self.bare_model, inputs, optimization.chunk_size)
        else:
            output = self.model(**inputs)
            self.accelerator.backward(output.loss)
        if self.accelerator.sync_gradients:
            norms["gradient_norm"] = self.accelerator.clip_grad_norm_(
                self.model.parameters(), optimization.max_gradient_norm
            )
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
            "bits_per_dim": bits,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """
        Both losses on views of the validation split (the same at every call), the cosine of their gradients, and the
        spread and kNN accuracy of features.

        The processes share the images out, in batches of about equal size, none smaller than those of the training.
        """
        model, config, accelerator = self.bare_model, self.config, self.accelerator
        model.eval()
        meter = Meter()
        validation = self.splits.validation
        levels = validation.all_levels(config.evaluation.max_images)
        labels = None if self.train_labels is None else validation.labels(config.evaluation.max_images)
        num_images = len(levels) // accelerator.num_processes
        mine = torch.arange(accelerator.process_index, len(levels), accelerator.num_processes)[:num_images]

        def inputs_of(part: torch.Tensor) -> dict[str, torch.Tensor]:
            inputs = self.views(levels[part].to(accelerator.device))
            if labels is not None:
                inputs["labels"] = torch.from_numpy(labels[part]).to(accelerator.device)
            return inputs

        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            torch.manual_seed(0)
            for part in mine.tensor_split(max(1, num_images // config.optimization.batch_size)):
                with accelerator.autocast():
                    meter.add(self.metrics(model(**inputs_of(part))))
            # No more images at a time than a training step holds.
            some = mine[: config.optimization.chunk_size or config.optimization.batch_size]
            with accelerator.autocast():
                meter.add({"gradient_cosine": gradient_cosine(model, inputs_of(some))})
        results = meter.pop(accelerator)
        if accelerator.is_main_process:
            results |= self.feature_figures()
        model.train()
        return {f"validation/{name}": value for name, value in results.items()}

    def feature_figures(self, max_images: int = 5000) -> dict[str, float]:
        """Spread of the features of the validation split, and where there are labels their kNN accuracy."""
        model, batch_size = self.bare_model, self.config.evaluation.batch_size
        validation = embed(model, self.splits.validation.all_levels(max_images), batch_size, False).features
        results = spread(validation)
        if self.splits.class_names is not None:
            train = embed(model, self.splits.reference.all_levels(max_images), batch_size, False).features
            splits = (self.splits.reference, train), (self.splits.validation, validation)
            train, validation = (Labelled(features, split.labels(max_images)) for split, features in splits)
            results["knn_accuracy"] = float(nearest_neighbours(train, validation, validation).mean())
        return results

    def save_model(self, name: str) -> None:
        """Model and image processor under `output_dir/name`, whole or not at all."""
        if self.accelerator.is_main_process:
            partial = new_partial(self.output_dir / name)
            self.bare_model.save_pretrained(partial)
            self.image_processor.save_pretrained(partial)
            replace_folder(partial, self.output_dir / name)

    def save_state(self) -> None:
        """Everything that is needed to go on from here, under `output_dir/state`, whole or not at all."""
        accelerator, state = self.accelerator, self.output_dir / "state"
        self.progress.positions = gather_object([self.position])
        with main_process_first():
            if accelerator.is_main_process:
                new_partial(state)
        accelerator.save_state(str(partial_of(state)))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            replace_folder(partial_of(state), state)

    def resume(self) -> None:
        """
        Go on from the last checkpoint, if there is one.

        Raises:
            ValueError: it was written by another number of processes, which would see other images.
        """
        accelerator, state = self.accelerator, self.output_dir / "state"
        with main_process_first():
            if accelerator.is_main_process:
                for folder in (state, self.output_dir / "model", self.output_dir / "last"):
                    recover_folder(folder)
        if state.is_dir():
            accelerator.load_state(str(state))
            num_processes = len(self.progress.positions)
            if num_processes != accelerator.num_processes:
                raise ValueError(
                    f"output_dir={self.output_dir} holds a run on {num_processes} process(es), which cannot go on "
                    f"exactly on {accelerator.num_processes}; use as many as before, or choose another output_dir."
                )
            self.position = tuple(self.progress.positions[accelerator.process_index])
            accelerator.print(f"Resuming from step {self.progress.step} of {self.config.optimization.num_steps}.")
        if accelerator.is_main_process:
            forget_after(self.output_dir / "log.jsonl", self.progress.step)

    def close(self) -> None:
        """Finish the trackers, and let the processes part."""
        # First the wrapped model, which holds the process group. Were it the last to do so, the group would end under
        # Python's lock, and wait for a thread of its own that may be waiting for that lock.
        self.model, *self.optimizers = self.accelerator.free_memory(self.model, *self.optimizers)
        self.accelerator.end_training()


def build_optimizers(model: HybridForPreTraining, optimization: OptimizationConfig) -> list[torch.optim.Optimizer]:
    """One for the sum of the losses; or one for each, the generative and the contrastive, with its weight as a rate."""
    rates = [1.0]
    if optimization.separate_moments:
        rates = [model.config.generative_weight, model.config.contrastive_weight]
    return [
        torch.optim.AdamW(
            parameter_groups(model, optimization.weight_decay),
            lr=rate * optimization.learning_rate,
            betas=tuple(optimization.betas),
            fused=True,
        )
        for rate in rates
    ]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices only: not on biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings and "position" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def describe(run: Run) -> None:
    """What is about to happen, said before it does."""
    config, model_config = run.config, run.bare_model.config
    num_processes = run.accelerator.num_processes
    num_images = config.optimization.batch_size * num_processes
    num_views = len(run.views.kinds)
    train_size = len(run.splits.train) if isinstance(run.splits.train, LevelsDataset) else "a stream of"
    lines = [
        f"{run.bare_model.num_parameters(only_trainable=True):,} parameters; {train_size} training images of "
        f"{model_config.num_channels}x{model_config.image_size}x{model_config.image_size}, "
        f"{model_config.num_patches} patches of {model_config.num_codes} codes.",
        f"{num_processes} process(es) on {run.accelerator.device}, {num_images} images a pass, {num_views} views each.",
    ]
    if model_config.contrastive_weight > 0:
        needs = run.bare_model.objective.needs
        positives, negatives = run.bare_model.objective.counts(run.views.kinds.tolist(), num_images)
        name = model_config.objective["name"]
        lines.append(f"Objective {name}: each anchor sees {positives} positive(s) and {negatives} negative(s).")
        if "labels" in needs:
            lines.append("Of these negatives, the images of the anchor's class are positives.")
        if (steps := config.optimization.gradient_accumulation_steps) > 1:
            lines.append(
                f"Warning: accumulating gradients over {steps} passes enlarges the batch of the likelihood, but adds "
                "no negatives: each pass contrasts its own images only. For more negatives raise batch_size, and set "
                "optimization.chunk_size where memory is short."
            )
    if config.augmentation.num_augmented_views > 0 and len(run.views.augment) == 0:
        lines.append(
            "Warning: no augmentation is switched on, so the augmented views are the images themselves. Set the ranges "
            "of the section augmentation."
        )
    run.accelerator.print("\n".join(lines))


def train(run: Run) -> None:
    """From where the run stands to its last step."""
    config, progress, accelerator = run.config, run.progress, run.accelerator
    num_steps, every = config.optimization.num_steps, config.logging
    bar = tqdm(
        total=num_steps, initial=progress.step, unit="step", mininterval=1, disable=not accelerator.is_main_process
    )
    meter, last_logged, clock = Meter(), progress.step, time.perf_counter()
    num_images = config.optimization.batch_size * accelerator.num_processes
    num_images *= config.optimization.gradient_accumulation_steps
    run.model.train()
    for levels, sample_ids in run.batches():
        meter.add(run.step(levels, sample_ids))
        if not accelerator.sync_gradients:
            continue
        bar.update()
        step = progress.step
        checkpoint_due = step % every.checkpoint_every == 0 or step == num_steps
        # A checkpoint comes after a log line: no mean is cut by it, and nothing that is not finite gets into it.
        if step % every.log_every == 0 or checkpoint_due:
            metrics = meter.pop(accelerator)
            seconds = time.perf_counter() - clock
            metrics["images_per_second"] = num_images * (step - last_logged) / seconds
            metrics["learning_rate"] = run.schedules[0].get_last_lr()[0]
            progress.seconds, last_logged, clock = progress.seconds + seconds, step, time.perf_counter()
            require_finite(metrics, step, config)
            log(run, metrics, bar)
        if step % every.evaluate_every == 0 or step == num_steps:
            metrics = run.validate()
            log(run, metrics, bar)
            if accelerator.is_main_process and (alarm := collapse(metrics, "validation/")):
                bar.write(alarm)
            if metrics["validation/loss"] < progress.best_validation_loss:
                progress.best_validation_loss = metrics["validation/loss"]
                run.save_model("model")
            clock = time.perf_counter()
        if checkpoint_due:
            run.save_state()
            clock = time.perf_counter()
    bar.close()
    run.save_model("last")


def log(run: Run, metrics: dict[str, float], bar: tqdm) -> None:
    """To the trackers, to `log.jsonl` (which the training curves are drawn from) and to the progress bar."""
    run.accelerator.log(metrics, step=run.progress.step)
    if not run.accelerator.is_main_process:
        return
    with open(run.output_dir / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": run.progress.step, **metrics}) + "\n")
    shown = ("contrastive_loss", "generative_loss", "bits_per_dim", "images_per_second")
    if any(name in metrics for name in shown):
        bar.set_postfix({name: f"{metrics[name]:.4g}" for name in shown if name in metrics})
    else:
        bar.write(f"step {run.progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))


def require_finite(metrics: dict[str, float], step: int, config: PretrainConfig) -> None:
    """
    Raises:
        FloatingPointError: a loss or the gradient is infinite or not a number.
    """
    if config.optimization.precision == "fp16" and not math.isfinite(metrics["gradient_norm"]):
        # Single steps overflow by design and are skipped, until the loss scale has found its size.
        del metrics["gradient_norm"]
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(
            f"At step {step}, {', '.join(f'{name} is {value}' for name, value in wrong.items())}. Lower "
            "optimization.learning_rate, lengthen optimization.num_warmup_steps, or use optimization.precision=bf16 "
            "instead of fp16; the last checkpoint is kept."
        )


def pretrain(config: PretrainConfig, command: str) -> None:
    """A whole run: train (or resume), evaluate the best model, write its card."""
    accelerator = prepare_accelerator(config)
    with main_process_first():
        if accelerator.is_main_process:
            open_output_dir(config)
    run = Run(config, accelerator)
    run.resume()
    accelerator.init_trackers("pretrain", init_kwargs={"tensorboard": {"purge_step": run.progress.step + 1}})
    describe(run)
    train(run)
    run.close()
    if accelerator.is_main_process:
        results = evaluate_run(
            run.output_dir / "model", run.splits, config, run.output_dir, command, run.progress.seconds
        )
        print(json.dumps({k: v for k, v in results.items() if isinstance(v, float)}, indent=2))


def main(arguments: list[str]) -> int:
    transformers.utils.logging.disable_progress_bar()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        config = load_config(arguments[0], arguments[1:])
        pretrain(config, " ".join(["python -m training.pretrain", *arguments]))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
