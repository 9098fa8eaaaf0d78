"""The loop over the steps of a run: when to log, to look at validation images, and to write a checkpoint."""

import time

from ..command import Terminated
from ..evaluation.spread import collapse
from .checkpoints import save_model, save_state
from .divergence import keep
from .log import Forecast, Log, Meter, require_finite
from .run import Run
from .validation import validate


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
            metrics = validate(run)
            require_finite({"validation/loss": metrics["validation/loss"]}, step, config)
            log.write(metrics, step)
            if accelerator.is_main_process and (alarm := collapse(metrics, "validation/")):
                log.say(alarm)
            if metrics["validation/loss"] < progress.best_validation_loss:
                progress.best_validation_loss = metrics["validation/loss"]
                save_model(run, "model")
            clock = time.perf_counter()
        if checkpoint_due:
            save_state(run)
            clock = time.perf_counter()
        if is_asked_to_end:
            log.bar.close()
            raise Terminated(f"Ended by SIGTERM at step {step}, which is saved; the same command goes on from there.")
    log.bar.close()
    save_model(run, "last")
