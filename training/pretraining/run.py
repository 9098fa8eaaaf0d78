"""
One run: what it holds, one step of it, the loop over the steps, and its checkpoints.

`Run.step` is one forward and backward pass, [`train`] the loop; a checkpoint is described in `Run.save_state`.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import broadcast, gather_object, set_seed
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from modeling_hybrid import HybridConfig, HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.likelihood import bits_per_dim
from modeling_hybrid.objectives.base import CLEAN
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput

from ..command import Terminated
from ..config import PretrainConfig
from ..data.batches import Batch, Lanes, Position, lanes_of, training_batches
from ..data.images import ImageStream, LevelsDataset
from ..data.splits import load_splits
from ..data.views import Views
from ..disk import partial_of, require_space, writing
from ..embedding import embed
from ..evaluation.probes import Labelled, nearest_neighbours
from ..evaluation.requirements import require_enough
from ..evaluation.spread import collapse, spread
from ..hardware import fork_rng, random_state
from ..optimization.gradient_cache import cached_backward
from ..optimization.gradients import average_replicated, gradient_cosine, whole
from ..optimization.optimizers import build_optimizers, build_schedule
from ..optimization.separate_moments import SeparateSteps
from ..plain_files import require_plain_checkpoint
from .divergence import Pass, keep
from .log import TRACKED, Forecast, Log, Meter, require_finite
from .output_folder import forget_after, new_partial, recover_folder, replace_folder
from .processes import Termination, main_process_first
from .state import load_progress, load_tensors, recover_state, save_progress, save_tensors, seal
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
            if self.teacher is not None:
                inputs["teacher"] = self.teacher["validation"][part].to(accelerator.device)
            return inputs

        with fork_rng(accelerator.device):
            torch.manual_seed(0)
            for part in mine.tensor_split(max(1, num_images // self.batch_size)):
                self.watch.beat()
                with accelerator.autocast():
                    meter.add(self.metrics(model(**inputs_of(part))))
            # No more images at a time than a training step holds.
            some = mine[: config.optimization.chunk_size or self.batch_size]
            with accelerator.autocast():
                meter.add({"gradient_cosine": gradient_cosine(model, inputs_of(some))})
        results = meter.pop(accelerator)
        if isinstance(model, FSDPModule):
            # All layers are gathered as they are called, by all processes; the rest has to be asked for.
            model.unshard()
            results |= self.judge_features()
            model.reshard()
        elif accelerator.is_main_process:
            results |= self.judge_features()
        model.train()
        return {f"validation/{name}": value for name, value in results.items()}

    def judge_features(self, max_images: int = 5000) -> dict[str, float]:
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
        """Model and image processor under `output_dir/name`, whole or not at all; called by all processes."""
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            with writing(self.output_dir / name):
                partial = new_partial(self.output_dir / name)
                self.bare_model.save_pretrained(partial, state_dict=weights)
                self.image_processor.save_pretrained(partial)
            replace_folder(partial, self.output_dir / name)

    def save_state(self) -> None:
        """
        Everything that is needed to go on exactly from here, under `output_dir/state`, whole or not at all:

            shard-*.safetensors     weights, with the state of the objective and of the momentum encoder, and moments
            scaler.pt               of losses in fp16
            progress.json           schedules; then `Progress`: step, position in the images, seconds, best loss, ...
            random_states_R.pkl     random state of process R: Python, numpy, torch on the CPU and on the accelerator
            checksums.json          of all of these

        The state before stays as `output_dir/state.retired`, for the case that this one is damaged later.
        """
        accelerator, state = self.accelerator, self.output_dir / "state"
        self.watch.beat()
        # A table is a single lane, which all processes read.
        self.progress.position = gather_object(self.position)[: self.lanes.num]
        with writing(state):
            with main_process_first():
                if accelerator.is_main_process:
                    new_partial(state)
            save_tensors(partial_of(state), self.bare_model, self.optimizers)
            # Random states, and the scale of losses in fp16.
            rank, scaler = accelerator.process_index, accelerator.scaler
            save_accelerator_state(str(partial_of(state)), [], [], [], [], rank, self.progress.step, scaler)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                schedules = [schedule.state_dict() for schedule in self.schedules]
                save_progress(partial_of(state), schedules, asdict(self.progress))
                seal(partial_of(state))
        if accelerator.is_main_process:
            replace_folder(partial_of(state), state, keep_old=True)

    def require_space(self) -> None:
        """
        Raises:
            ValueError: the disk is too full for what the run writes.
        """
        weights = sum(tensor.nbytes for tensor in self.bare_model.state_dict().values())
        moments = sum(2 * p.nbytes for p in self.bare_model.parameters() if p.requires_grad)
        state = weights + moments * len(self.optimizers)
        # While they are written: three states, the best model with its successor, and the last model.
        require_space(self.output_dir, 3 * state + 3 * weights)

    def resume(self) -> None:
        """
        Go on from the last checkpoint, if there is one: all that `save_state` writes is restored here. On another
        number of processes the global batches stay the same, but their views, and dropout, are drawn anew.

        Raises:
            ValueError: its global batches cannot be shared out among this number of processes; or it is damaged, as is
                the one before it.
        """
        accelerator, state = self.accelerator, self.output_dir / "state"
        with main_process_first():
            if accelerator.is_main_process:
                recover_state(state)
                for folder in (self.output_dir / "model", self.output_dir / "last"):
                    recover_folder(folder)
        if state.is_dir():
            schedules, progress = load_progress(state)
            self.progress = Progress(**progress)
            self._take_position()
            if any(state.glob("shard-*.safetensors")):
                load_tensors(state, self.bare_model, self.optimizers)
                rank, scaler = accelerator.process_index, accelerator.scaler
                load_accelerator_state(str(state), [], [], [], [], rank, scaler)
            elif accelerator.is_fsdp2:
                raise ValueError(f"{state} was written by an earlier version, and goes on without --use_fsdp only.")
            else:
                accelerator.load_state(str(state))
            if len(list(state.glob("random_states_*"))) != accelerator.num_processes:
                # Those of other processes would draw the views of other images.
                set_seed(int(np.random.SeedSequence([self.config.seed, self.progress.step]).generate_state(1)[0]), True)
            for optimizer, schedule, saved in zip(self.optimizers, self.schedules, schedules, strict=True):
                # Rates are those of the configuration: FSDP has more groups, in which they repeat.
                initial = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
                rates = [rate * share(saved["last_epoch"]) for rate, share in initial]
                own = {"base_lrs": schedule.base_lrs, "lr_lambdas": [None] * len(rates), "_last_lr": rates}
                schedule.load_state_dict(saved | own)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            accelerator.print(f"Resuming from step {self.progress.step} of {self.config.optimization.num_steps}.")
        if accelerator.is_main_process:
            forget_after(self.output_dir / "log.jsonl", self.progress.step)

    def _take_position(self) -> None:
        """This process goes on with its part of the global batches, whoever computed those before."""
        num_processes, num_lanes = self.accelerator.num_processes, self.lanes.num
        num_images = self.config.optimization.batch_size * self.progress.num_processes
        is_streamed = isinstance(self.splits.train, ImageStream)
        cannot = f"output_dir={self.output_dir} cannot go on on {num_processes} process(es): "
        if is_streamed and (len(self.progress.position), *map(len, self.progress.position[:1])) != (num_lanes, 4):
            raise ValueError(
                f"{cannot}its stream was read by an earlier version, or has another number of shards by now."
            )
        if num_images % num_processes:
            raise ValueError(f"{cannot}a global batch of its {num_images} images is not divisible by them.")
        if is_streamed and num_lanes % num_processes:
            raise ValueError(
                f"{cannot}its stream is read in {num_lanes} lanes, which is not divisible by them; cut the data into "
                f"more shards for a new run, or use a number of processes that divides {num_lanes}."
            )
        of_process = num_lanes // num_processes if is_streamed else 1
        first = of_process * self.accelerator.process_index if is_streamed else 0
        self.position = [tuple(place) for place in self.progress.position[first : first + of_process]]

    def close(self) -> None:
        """Finish the trackers, and let the processes part."""
        # First the wrapped model, which holds the process group. Were it the last to do so, the group would end under
        # Python's lock, and wait for a thread of its own that may be waiting for that lock.
        self.separate_steps = None
        self.model, *self.optimizers = self.accelerator.free_memory(self.model, *self.optimizers)
        with writing(self.output_dir / TRACKED):
            self.accelerator.end_training()


def train(run: Run) -> None:
    """
    From where the run stands to its last step.

    Raises:
        Terminated: SIGTERM came, and the state has been saved.
    """
    config, progress, accelerator = run.config, run.progress, run.accelerator
    num_steps, every = config.optimization.num_steps, config.logging
    log = Log(accelerator, run.output_dir / "log.jsonl", num_steps, progress.step)
    forecast = Forecast(num_steps, progress.step)
    meter, last_logged, clock = Meter(), progress.step, time.perf_counter()
    num_images = run.batch_size * accelerator.num_processes * config.optimization.gradient_accumulation_steps
    run.model.train()
    for levels, sample_ids in run.batches():
        meter.add(run.step(levels, sample_ids))
        if not accelerator.sync_gradients:
            continue
        log.bar.update()
        step = progress.step
        if told := forecast.after(step):
            log.say(told)
        is_asked_to_end = run.termination.is_due(step)
        checkpoint_due = step % every.checkpoint_every == 0 or step == num_steps or is_asked_to_end
        # A checkpoint comes after a log line: no mean is cut by it, and nothing that is not finite gets into it.
        if step % every.log_every == 0 or checkpoint_due:
            metrics = meter.pop(accelerator)
            seconds = time.perf_counter() - clock
            metrics["images_per_second"] = num_images * (step - last_logged) / seconds
            metrics["data_wait_share"], run.seconds_waited = run.seconds_waited / seconds, 0.0
            metrics["learning_rate"] = run.schedules[0].get_last_lr()[0]
            progress.seconds, last_logged, clock = progress.seconds + seconds, step, time.perf_counter()
            try:
                require_finite(metrics, step, config)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} {keep(run)}") from None
            log.write(metrics, step)
        if step % every.evaluate_every == 0 or step == num_steps:
            metrics = run.validate()
            require_finite({"validation/loss": metrics["validation/loss"]}, step, config)
            log.write(metrics, step)
            if accelerator.is_main_process and (alarm := collapse(metrics, "validation/")):
                log.say(alarm)
            if metrics["validation/loss"] < progress.best_validation_loss:
                progress.best_validation_loss = metrics["validation/loss"]
                run.save_model("model")
            clock = time.perf_counter()
        if checkpoint_due:
            run.save_state()
            clock = time.perf_counter()
        if is_asked_to_end:
            log.bar.close()
            raise Terminated(f"Ended by SIGTERM at step {step}, which is saved; the same command goes on from there.")
    log.bar.close()
    run.save_model("last")
