"""How the benchmarks measure: in turn, in processes of their own, with the setting beside the values."""

import argparse
import json
import multiprocessing
import platform
import re
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity


# By name of a value: smallest and largest one that meets the target.
Targets = dict[str, tuple[float, float]]


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, calls: int = 1) -> dict[str, float]:
    """
    Median seconds of a call of each of `runs`, which take turns; every turn is `calls` calls, the first is a warm-up.
    """
    turns = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(calls):
                run()
            turns[name].append((time.perf_counter() - began) / calls)
    medians = {}
    for name, (_, *measured) in turns.items():
        medians[name] = statistics.median(measured)
        low, middle, high = (1e3 * value for value in (min(measured), medians[name], max(measured)))
        print(f"  {name:<16} {middle:10.2f} ms ({low:.2f} .. {high:.2f})", flush=True)
    return medians


def resident() -> float:
    """MiB that this process holds. Linux only."""
    return _status("VmRSS")


def peak_since_now(run: Callable[[], object]) -> float:
    """MiB that this process holds at the peak of a call of `run`. Linux only."""
    # Not `resource.getrusage`: its maximum is inherited from the parent process, so a large parent hides the child.
    Path("/proc/self/clear_refs").write_text("5")  # peak := now
    run()
    return _status("VmHWM")


def added_at_peak(run: Callable[[], object], calls: int = 1) -> float:
    """MiB that `calls` calls of `run` add at their peak. Linux only, in a process of its own."""
    before = resident()
    return peak_since_now(lambda: [run() for _ in range(calls)]) - before


def _status(field: str) -> float:
    kibibytes = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes[1]) / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_fresh_process(function: Callable, *arguments):
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def setting(repeats: int) -> dict[str, str | int]:
    """What the values depend on beside the code."""
    cpu_info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else None
    return {
        "cpu": f"{named[1] if named else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(values: dict[str, float], targets: Targets) -> str:
    """The values, one a line, with their targets where they have one."""
    lines = [f"{'':<48} {'value':>10}   target"]
    for name, value in values.items():
        line = f"{name:<48} {value:>10.3f}"
        if name in targets:
            smallest, largest = targets[name]
            bound = f">= {smallest}" if largest == torch.inf else f"<= {largest}"
            line += f"   {bound} {'met' if smallest <= value <= largest else 'MISSED'}"
        lines.append(line)
    return "\n".join(lines)


def seconds_of_parts(parts: dict[str, nn.Module], step: Callable[[], None]) -> dict[str, float]:
    """Seconds that one `step` spends in the forward and the backward pass of each of `parts`; CPU only."""
    began, spent = {}, dict.fromkeys([f"{name} {way}" for name in parts for way in ("forward", "backward")], 0.0)

    def begin(key: str):
        began[key] = time.perf_counter()

    def end(key: str):
        spent[key] += time.perf_counter() - began[key]

    handles = []
    for name, part in parts.items():
        forward, backward = f"{name} forward", f"{name} backward"
        handles += [
            part.register_forward_pre_hook(lambda *_, key=forward: begin(key)),
            part.register_forward_hook(lambda *_, key=forward: end(key)),
            part.register_full_backward_pre_hook(lambda *_, key=backward: begin(key)),
            part.register_full_backward_hook(lambda *_, key=backward: end(key)),
        ]
    start = time.perf_counter()
    step()
    total = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return spent | {"rest (loss, optimizer, embeddings)": total - sum(spent.values())}


def print_profile(title: str, run: Callable[[], object]) -> None:
    """The operators that take the most time of one `run`, and the time outside of all operators."""
    run()
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.key_averages()
    operators = sum(event.self_cpu_time_total for event in events) / 1e6
    print(f"\n{title}: {wall * 1e3:.2f} ms, {operators * 1e3:.2f} ms in operators (under the profiler)")
    print(events.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


def add_options(parser: argparse.ArgumentParser, output: str, repeats: int) -> None:
    """What every benchmark takes: threads, repeats, and the file that its values go to."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that the medians are of")
    parser.add_argument("--output", type=Path, default=Path(output), help="one flat JSON object: setting and values")


def begin(options: argparse.Namespace, **further) -> dict[str, str | int]:
    """Set the threads; say, and give back, what the values depend on."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    settings = setting(options.repeats) | further
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    return settings


def write(path: Path, settings: dict[str, str | int], values: dict[str, float]) -> None:
    path.write_text(json.dumps(settings | values, indent=2) + "\n")
