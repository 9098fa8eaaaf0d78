"""
Pre-training, from a configuration to a checkpoint with its evaluation and model card.

    python -m training.pretrain training/configs/digits.yaml [section.key=value ...]
    accelerate launch -m training.pretrain training/configs/digits.yaml
    torchrun --nproc_per_node 8 -m training.pretrain training/configs/digits.yaml

`pretrain` shows the whole run in order; `Run.step` is one forward and backward pass.
"""

import json
import logging
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.likelihood import bits_per_dim

from .augmentation import CLEAN, Views
from .config import PretrainConfig, differences, load_config, save_config
from .data import Collate, LevelsDataset, Splits, load_splits
from .evaluate import evaluate_run
from .evaluation.embedding import embed
from .evaluation.probes import Labelled, nearest_neighbours


logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    epoch: int = 0
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
        self.count = 0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def pop(self) -> dict[str, float]:
        means = {name: (total / self.count).item() for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Run:
    """What one run holds: model, data, optimizer and schedule, all on their devices."""

    def __init__(self, config: PretrainConfig):
        self.config = config
        self.output_dir = Path(config.output_dir)
        optimization, model_config = config.optimization, config.model_config()
        one_loss_off = min(model_config.contrastive_weight, model_config.generative_weight) == 0
        self.accelerator = Accelerator(
            mixed_precision=optimization.mixed_precision,
            gradient_accumulation_steps=optimization.gradient_accumulation_steps,
            log_with=list(config.logging.trackers) or None,
            project_dir=self.output_dir,
            dataloader_config=DataLoaderConfiguration(
                use_stateful_dataloader=True, use_seedable_sampler=True, dispatch_batches=False
            ),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=one_loss_off)],
        )
        set_seed(config.seed, device_specific=True)
        with self.accelerator.main_process_first():
            self.splits = load_splits(config.data, model_config, max_streamed=config.evaluation.max_images or 2000)

        model = HybridForPreTraining(model_config)
        if optimization.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if optimization.compile:
            model.compile()
        self.image_processor = HybridImageProcessor.from_config(model_config)
        self.views = Views(config.augmentation, model_config.image_size, model_config.num_levels)
        self.views.to(self.accelerator.device)
        self.clean_views = [i for i, kind in enumerate(self.views.kinds.tolist()) if kind == CLEAN]
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optimization.weight_decay),
            lr=optimization.learning_rate,
            betas=tuple(optimization.betas),
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, optimizer, training_loader(self.splits, config)
        )
        # Not prepared: Accelerate would advance it once per process and step.
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self.optimizer,
            optimization.num_warmup_steps,
            optimization.num_steps,
            min_lr_rate=optimization.final_learning_rate_share,
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)

    @property
    def bare_model(self) -> HybridForPreTraining:
        return self.accelerator.unwrap_model(self.model)

    def step(self, levels: torch.Tensor) -> dict[str, torch.Tensor]:
        """One forward and backward pass over levels (B, C, H, W), and an optimizer step where one is due."""
        with self.accelerator.accumulate(self.model):
            pixel_values, view_kinds = self.views(levels)
            output = self.model(pixel_values, view_kinds=view_kinds)
            self.accelerator.backward(output.loss)
            metrics = {"loss": output.loss, **(output.telemetry or {})}
            if self.accelerator.sync_gradients:
                metrics["gradient_norm"] = self.accelerator.clip_grad_norm_(
                    self.model.parameters(), self.config.optimization.max_gradient_norm
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.schedule.step()
            self.progress.step += 1
        if output.contrastive_loss is not None:
            metrics["contrastive_loss"] = output.contrastive_loss
        if output.generative_loss is not None:
            metrics["generative_loss"] = output.generative_loss
            nll = output.nll[self.clean_views] if self.clean_views else output.nll
            metrics["bits_per_dim"] = bits_per_dim(nll.mean(), self.bare_model.config)
        return metrics

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Both losses on views of the validation split (the same at every call), and the kNN accuracy of features."""
        model, config = self.bare_model, self.config
        model.eval()
        meter = Meter()
        with torch.random.fork_rng(devices=[self.accelerator.device] if torch.cuda.is_available() else []):
            torch.manual_seed(0)
            levels = self.splits.validation.all_levels(config.evaluation.max_images)
            batches = [batch for batch in levels.split(config.optimization.batch_size) if len(batch) > 1] or [levels]
            for batch in batches:
                pixel_values, view_kinds = self.views(batch.to(self.accelerator.device))
                with self.accelerator.autocast():
                    output = model(pixel_values, view_kinds=view_kinds)
                metrics = {"loss": output.loss, "contrastive_loss": output.contrastive_loss}
                if output.nll is not None:
                    nll = output.nll[self.clean_views] if self.clean_views else output.nll
                    metrics["bits_per_dim"] = bits_per_dim(nll.mean(), model.config)
                meter.add({name: value for name, value in metrics.items() if value is not None})
        results = meter.pop()
        if self.splits.validation.labels() is not None:
            train, validation = (
                Labelled(
                    embed(model, part.all_levels(5000), config.evaluation.batch_size, False).features, part.labels(5000)
                )
                for part in (self.splits.reference, self.splits.validation)
            )
            results["knn_accuracy"] = nearest_neighbours(train, validation, validation)
        model.train()
        return {f"validation/{name}": value for name, value in results.items()}

    def features(self, levels: torch.Tensor) -> np.ndarray:
        return embed(self.bare_model, levels, self.config.evaluation.batch_size, with_likelihood=False).features

    def save_model(self, name: str) -> None:
        """Model and image processor under `output_dir/name`, whole or not at all."""
        if self.accelerator.is_main_process:
            partial = self.output_dir / f"{name}.partial"
            self.bare_model.save_pretrained(partial)
            self.image_processor.save_pretrained(partial)
            replace_folder(partial, self.output_dir / name)

    def save_state(self) -> None:
        """Everything that is needed to go on from here, under `output_dir/state`, whole or not at all."""
        partial = self.output_dir / "state.partial"
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            replace_folder(partial, self.output_dir / "state")

    def resume(self) -> None:
        if (self.output_dir / "state").is_dir():
            self.accelerator.load_state(str(self.output_dir / "state"))
            self.accelerator.print(f"Resuming from step {self.progress.step} of {self.config.optimization.num_steps}.")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices only: not on biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings and "position" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def training_loader(splits: Splits, config: PretrainConfig) -> DataLoader:
    batch_size = config.optimization.batch_size
    streamed = not isinstance(splits.train, LevelsDataset)
    if not streamed and len(splits.train) < batch_size:
        raise ValueError(
            f"optimization.batch_size={batch_size} is larger than the training split of {len(splits.train)} images; "
            "lower it."
        )
    return DataLoader(
        splits.train,
        batch_size=batch_size,
        shuffle=None if streamed else True,
        drop_last=True,
        num_workers=config.data.num_workers,
        collate_fn=Collate(splits.shape),
        pin_memory=torch.cuda.is_available(),
    )


def replace_folder(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`; a process killed at any moment leaves one of the two complete."""
    retired = old.with_name(f"{old.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)


def open_output_dir(config: PretrainConfig) -> None:
    """
    Create the output folder, or check that it holds an unfinished run with this configuration, which is resumed.

    Raises:
        ValueError: the folder holds another run, a finished one, or other files.
    """
    folder = Path(config.output_dir)
    saved = folder / "config.yaml"
    if config.overwrite and saved.exists():
        shutil.rmtree(folder)
    mend = "choose another output_dir, or pass overwrite=true to replace it"
    if saved.exists():
        changed = differences(load_config(saved), config)
        if changed:
            raise ValueError(f"output_dir={folder} holds a run with other values of {', '.join(changed)}; {mend}.")
        if (folder / "evaluation.json").exists():
            raise ValueError(f"output_dir={folder} holds a finished run; {mend}.")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output_dir={folder} holds files that are not a run's; choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, saved)


def describe(run: Run) -> None:
    """What is about to happen, said before it does."""
    config, model_config = run.config, run.bare_model.config
    num_processes = run.accelerator.num_processes
    num_images = config.optimization.batch_size * num_processes
    num_views = len(run.views.kinds)
    train_size = len(run.splits.train) if isinstance(run.splits.train, LevelsDataset) else "a stream of"
    lines = [
        f"{run.bare_model.num_parameters():,} parameters; {train_size} training images of "
        f"{model_config.num_channels}x{model_config.image_size}x{model_config.image_size}, "
        f"{model_config.num_patches} patches of {model_config.num_codes} codes.",
        f"{num_processes} process(es) on {run.accelerator.device}, {num_images} images a pass, {num_views} views each.",
    ]
    if model_config.contrastive_weight > 0:
        lines.append(f"Each anchor sees {num_views - 1} positive(s) and {num_views * (num_images - 1)} negatives.")
        if (steps := config.optimization.gradient_accumulation_steps) > 1:
            lines.append(
                f"Warning: accumulating gradients over {steps} passes enlarges the batch of the likelihood, but adds "
                "no negatives: each pass contrasts its own images only. Raise batch_size for more negatives."
            )
    run.accelerator.print("\n".join(lines))


def train(run: Run) -> None:
    config, progress, accelerator = run.config, run.progress, run.accelerator
    num_steps, every = config.optimization.num_steps, config.logging
    bar = tqdm(total=num_steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    meter, last_logged, clock = Meter(), progress.step, time.perf_counter()
    num_images = config.optimization.batch_size * accelerator.num_processes
    num_images *= config.optimization.gradient_accumulation_steps
    run.model.train()
    while progress.step < num_steps:
        run.loader.set_epoch(progress.epoch)
        for levels in run.loader:
            meter.add(run.step(levels))
            if not accelerator.sync_gradients:
                continue
            step = progress.step
            bar.update()
            if step % every.log_every == 0 or step == num_steps:
                metrics = meter.pop()
                seconds = time.perf_counter() - clock
                metrics["images_per_second"] = num_images * (step - last_logged) / seconds
                metrics["learning_rate"] = run.schedule.get_last_lr()[0]
                progress.seconds, last_logged, clock = progress.seconds + seconds, step, time.perf_counter()
                log(run, metrics, bar)
                require_finite(metrics, step)
            if step % every.evaluate_every == 0 or step == num_steps:
                metrics = run.validate() if accelerator.is_main_process else {}
                if metrics.get("validation/loss", float("inf")) < progress.best_validation_loss:
                    progress.best_validation_loss = metrics["validation/loss"]
                    run.save_model("model")
                log(run, metrics, bar)
                accelerator.wait_for_everyone()
                clock = time.perf_counter()
            if step % every.checkpoint_every == 0 or step == num_steps:
                run.save_state()
                clock = time.perf_counter()
            if step == num_steps:
                break
        else:
            progress.epoch += 1
    bar.close()
    run.save_model("last")


def log(run: Run, metrics: dict[str, float], bar: tqdm) -> None:
    """To the trackers, to `log.jsonl` (which the training curves are drawn from) and to the progress bar."""
    run.accelerator.log(metrics, step=run.progress.step)
    if not run.accelerator.is_main_process or not metrics:
        return
    with open(run.output_dir / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": run.progress.step, **metrics}) + "\n")
    shown = ("contrastive_loss", "generative_loss", "bits_per_dim", "images_per_second")
    if any(name in metrics for name in shown):
        bar.set_postfix({name: f"{metrics[name]:.4g}" for name in shown if name in metrics})
    else:
        bar.write(f"step {run.progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))


def require_finite(metrics: dict[str, float], step: int) -> None:
    wrong = {name: value for name, value in metrics.items() if not abs(value) < float("inf")}
    # Under fp16 the first steps overflow by design, until the loss scale has found its size.
    wrong.pop("gradient_norm", None)
    if wrong:
        raise FloatingPointError(
            f"At step {step} {wrong} is not finite. Lower optimization.learning_rate, lengthen num_warmup_steps, or "
            "use mixed_precision=bf16 instead of fp16; the last checkpoint is kept."
        )


def pretrain(config: PretrainConfig, command: str) -> None:
    """A whole run: train (or resume), evaluate the best model, write its card."""
    if int(os.environ.get("RANK", 0)) == 0:
        open_output_dir(config)
    run = Run(config)
    run.accelerator.init_trackers("pretrain")
    run.resume()
    describe(run)
    train(run)
    run.accelerator.end_training()
    if run.accelerator.is_main_process:
        results = evaluate_run(
            run.output_dir / "model", run.splits, config, run.output_dir, command, run.progress.seconds
        )
        print(json.dumps({k: v for k, v in results.items() if isinstance(v, float)}, indent=2))
    run.accelerator.wait_for_everyone()


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        config = load_config(arguments[0], arguments[1:])
        pretrain(config, " ".join(["python -m training.pretrain", *arguments]))
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
