"""Random states of a device are kept and brought back; what cannot be tested without an accelerator is its own part."""

import torch

from training.hardware import best_device, describe, fork_rng, random_state, set_random_state, synchronize


def test_random_states_are_brought_back():
    device = best_device()
    state = random_state(device)
    first = torch.rand(3), torch.rand(3, device=device)
    set_random_state(state, device)
    assert torch.equal(torch.rand(3), first[0]) and torch.equal(torch.rand(3, device=device), first[1])
    set_random_state(state, device)
    with fork_rng(device):
        torch.manual_seed(5)
        torch.rand(7, device=device)
    assert torch.equal(torch.rand(3), first[0]) and torch.equal(torch.rand(3, device=device), first[1])


def test_the_cpu_is_described_by_its_threads():
    device = torch.device("cpu")
    synchronize(device)
    assert describe(device) == f"CPU, {torch.get_num_threads()} thread(s)"
    assert (best_device().type == "cpu") == (not torch.accelerator.is_available())
