"""
The checkpoints of a run: models to use, and the state to go on from. [`save_state`] says what that holds.

How they lie on the disk is the matter of `state.py` (tensors, checksums) and `output_folder.py` (whole or not at all).
"""

from dataclasses import asdict

import numpy as np
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import gather_object, set_seed

from ..data.images import ImageStream
from ..disk import partial_of, require_space, writing
from .output_folder import forget_after, new_partial, recover_folder, replace_folder
from .processes import main_process_first
from .run import Progress, Run
from .state import load_progress, load_tensors, recover_state, save_progress, save_tensors, seal


def save_model(run: Run, name: str) -> None:
    """Model and image processor under `output_dir/name`, whole or not at all; called by all processes."""
    weights = run.accelerator.get_state_dict(run.model)
    if run.accelerator.is_main_process:
        with writing(run.output_dir / name):
            partial = new_partial(run.output_dir / name)
            run.bare_model.save_pretrained(partial, state_dict=weights)
            run.image_processor.save_pretrained(partial)
        replace_folder(partial, run.output_dir / name)


def save_state(run: Run) -> None:
    """
    Everything that is needed to go on exactly from here, under `output_dir/state`, whole or not at all:

        shard-*.safetensors     weights, with the state of the objective and of the momentum encoder, and moments
        scaler.pt               of losses in fp16
        progress.json           schedules; then `Progress`: step, position in the images, seconds, best loss, ...
        random_states_R.pkl     random state of process R: Python, numpy, torch on the CPU and on the accelerator
        checksums.json          of all of these

    The state before stays as `output_dir/state.retired`, for the case that this one is damaged later.
    """
    accelerator, state = run.accelerator, run.output_dir / "state"
    run.watch.beat()
    # A table is a single lane, which all processes read.
    run.progress.position = gather_object(run.position)[: run.lanes.num]
    with writing(state):
        with main_process_first():
            if accelerator.is_main_process:
                new_partial(state)
        save_tensors(partial_of(state), run.bare_model, run.optimizers)
        # Random states, and the scale of losses in fp16.
        rank, scaler = accelerator.process_index, accelerator.scaler
        save_accelerator_state(str(partial_of(state)), [], [], [], [], rank, run.progress.step, scaler)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            schedules = [schedule.state_dict() for schedule in run.schedules]
            save_progress(partial_of(state), schedules, asdict(run.progress))
            seal(partial_of(state))
    if accelerator.is_main_process:
        replace_folder(partial_of(state), state, keep_old=True)


def require_space_for(run: Run) -> None:
    """
    Raises:
        ValueError: the disk is too full for what the run writes.
    """
    weights = sum(tensor.nbytes for tensor in run.bare_model.state_dict().values())
    moments = sum(2 * p.nbytes for p in run.bare_model.parameters() if p.requires_grad)
    state = weights + moments * len(run.optimizers)
    # While they are written: three states, the best model with its successor, and the last model.
    require_space(run.output_dir, 3 * state + 3 * weights)


def resume(run: Run) -> None:
    """
    Go on from the last checkpoint, if there is one: all that `save_state` writes is restored here. On another
    number of processes the global batches stay the same, but their views, and dropout, are drawn anew.

    Raises:
        ValueError: its global batches cannot be shared out among this number of processes; or it is damaged, as is
            the one before it.
    """
    accelerator, state = run.accelerator, run.output_dir / "state"
    with main_process_first():
        if accelerator.is_main_process:
            recover_state(state)
            for folder in (run.output_dir / "model", run.output_dir / "last"):
                recover_folder(folder)
    if state.is_dir():
        schedules, progress = load_progress(state)
        run.progress = Progress(**progress)
        _take_position(run)
        if any(state.glob("shard-*.safetensors")):
            load_tensors(state, run.bare_model, run.optimizers)
            rank, scaler = accelerator.process_index, accelerator.scaler
            load_accelerator_state(str(state), [], [], [], [], rank, scaler)
        elif accelerator.is_fsdp2:
            raise ValueError(f"{state} was written by an earlier version, and goes on without --use_fsdp only.")
        else:
            accelerator.load_state(str(state))
        if len(list(state.glob("random_states_*"))) != accelerator.num_processes:
            # Those of other processes would draw the views of other images.
            set_seed(int(np.random.SeedSequence([run.config.seed, run.progress.step]).generate_state(1)[0]), True)
        _restore_schedules(run, schedules)
        accelerator.print(f"Resuming from step {run.progress.step} of {run.config.optimization.num_steps}.")
    if accelerator.is_main_process:
        forget_after(run.output_dir / "log.jsonl", run.progress.step)


def _restore_schedules(run: Run, schedules: list[dict]) -> None:
    for optimizer, schedule, saved in zip(run.optimizers, run.schedules, schedules, strict=True):
        # Rates are those of the configuration: FSDP has more groups, in which they repeat.
        initial = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [rate * share(saved["last_epoch"]) for rate, share in initial]
        own = {"base_lrs": schedule.base_lrs, "lr_lambdas": [None] * len(rates), "_last_lr": rates}
        schedule.load_state_dict(saved | own)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _take_position(run: Run) -> None:
    """This process goes on with its part of the global batches, whoever computed those before."""
    num_processes, num_lanes = run.accelerator.num_processes, run.lanes.num
    num_images = run.config.optimization.batch_size * run.progress.num_processes
    is_streamed = isinstance(run.splits.train, ImageStream)
    cannot = f"output_dir={run.output_dir} cannot go on on {num_processes} process(es): "
    if is_streamed and (len(run.progress.position), *map(len, run.progress.position[:1])) != (num_lanes, 4):
        raise ValueError(f"{cannot}its stream was read by an earlier version, or has another number of shards by now.")
    if num_images % num_processes:
        raise ValueError(f"{cannot}a global batch of its {num_images} images is not divisible by them.")
    if is_streamed and num_lanes % num_processes:
        raise ValueError(
            f"{cannot}its stream is read in {num_lanes} lanes, which is not divisible by them; cut the data into "
            f"more shards for a new run, or use a number of processes that divides {num_lanes}."
        )
    of_process = num_lanes // num_processes if is_streamed else 1
    first = of_process * run.accelerator.process_index if is_streamed else 0
    run.position = [tuple(place) for place in run.progress.position[first : first + of_process]]
