"""What tests need that let Accelerate run, by `Trainer` or by the training loop."""

from accelerate.state import AcceleratorState, GradientState


def reset_accelerate() -> None:
    """Accelerate allows one run per process; the tests have many."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
