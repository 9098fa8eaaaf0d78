"""The processes of a run: Accelerate, told what the configuration asks for, and who goes first."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, broadcast_object_list
from torch.distributed.fsdp import MixedPrecisionPolicy

from modeling_hybrid.objectives import objective_class

from ..config import PretrainConfig


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
    # Without a loss, or with an objective that reads no pooled features, some parameters get no gradient; and so they
    # do from each of two losses, and from a chunk.
    some_unused = (
        not model_config.has_both_losses
        or "projections" not in objective_class(model_config.objective["name"]).needs
        or config.optimization.separate_moments
        or config.optimization.chunk_size > 0
    )
    optimization = config.optimization
    # As `accelerate launch --use_fsdp` asks for it.
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    sharding = _sharding(config) if is_sharded else None
    accelerator = Accelerator(
        fsdp_plugin=sharding,
        # Told so, it joins processes that have no accelerator; else each of them would train alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no" if optimization.precision == "fp32" else optimization.precision,
        gradient_accumulation_steps=optimization.gradient_accumulation_steps,
        log_with=list(config.logging.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[
            # The state of objectives is equal on all processes by itself.
            DistributedDataParallelKwargs(find_unused_parameters=some_unused, broadcast_buffers=False),
            # The others wait while the main process converts the images.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ],
    )
    if is_sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate itself shards on accelerators only.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding
    return accelerator


def _sharding(config: PretrainConfig) -> FullyShardedDataParallelPlugin:
    """
    FSDP2, layer by layer. The objective stays whole: its parameters are few, and some are single numbers.

    Raises:
        ValueError: the configuration asks for what does not go with it.
    """
    optimization = config.optimization
    if optimization.precision == "fp16":
        raise ValueError(
            "optimization.precision=fp16 is untried with FSDP: it scales losses, and what overflows in the shard of "
            "one process has to be seen by the others. Set precision=bf16 or fp32, or launch without --use_fsdp."
        )
    if optimization.compile:
        raise ValueError(
            "optimization.compile=true is untried with FSDP: the gradient of each loss goes through one graph, whose "
            "weights FSDP gathers and drops in between. Set compile=false, or launch without --use_fsdp."
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["HybridLayer"],
        ignored_modules="objective",
        cpu_ram_efficient_loading=False,
        # Weights stay in fp32; autocast does what it does without FSDP.
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


class Termination:
    """
    Whether the run has been asked to end, by SIGTERM to any of its processes while this is entered.

    Its loop asks after each step. Several processes agree at every tenth one: to ask is to wait for each other.
    """

    AGREED_EVERY = 10

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.asked = False
        self._before = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *error) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_) -> None:
        self.asked = True

    def is_due(self, step: int) -> bool:
        """Whether to save and end after this step; the same on all processes."""
        if self.accelerator.num_processes == 1:
            return self.asked
        if step % self.AGREED_EVERY:
            return False
        return self.accelerator.reduce(torch.tensor(float(self.asked), device=self.accelerator.device)).item() > 0
