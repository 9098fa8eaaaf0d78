"""What a run computes on: any accelerator that torch knows, else the CPU."""

import torch


def best_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def describe(device: torch.device) -> str:
    """The name of an accelerator, or how many threads the CPU lends."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} thread(s)"
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return named(device) if named else str(device)


def emulates_bf16(device: torch.device) -> bool:
    """Whether `device` is an x86 processor without instructions for bf16, where it is slower than fp32."""
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))


def synchronize(device: torch.device) -> None:
    """Wait for what the accelerator has still to do; nothing on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def fork_rng(device: torch.device):
    """A context that leaves the random states of the CPU and of `device` as it found them."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


# Of the CPU, and of an accelerator where there is one.
RandomState = tuple[torch.Tensor, torch.Tensor | None]


def random_state(device: torch.device) -> RandomState:
    of_accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), of_accelerator


def set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
