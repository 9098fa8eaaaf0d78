"""A process that dies or stands still is named, and the run goes on after it to the same end."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from training_fixtures import DIGITS_YAML, ROOT, TORCHRUN, assert_same_run, launch, small_overrides

from training.command import STALLED
from training.pretraining.watch import Seen, blame


def test_the_process_that_the_others_wait_for_is_named():
    """Who is silent comes before who is behind: a process that has been stopped may have come as far as the others."""
    there = {0: Seen("a", 7, 1.0), 1: Seen("b", 7, 2.0)}
    assert blame(there, interval=2) == "all processes have come equally far"
    assert blame(there | {2: Seen("c", 6, 0.0)}, interval=2) == ("process 2 on c has not come as far as the others")
    assert blame({0: Seen("a", 8, 1.0), 1: Seen("b", 7, 2.0), 2: Seen("c", 8, 30.0)}, interval=2) == (
        "process 2 on c is silent"
    )


WAITING = """
import os, sys, time
from torch.distributed import TCPStore
from training.pretraining.watch import Watch

rank = int(sys.argv[1])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
store = TCPStore("127.0.0.1", int(sys.argv[2]), is_master=rank == 0, wait_for_workers=False)
store.set(f"there/{rank}", "")
store.wait(["there/0", "there/1"])  # an import may take one of them longer than the limit
with Watch(rank, 2, limit=4.0) as watch:
    for _ in range(3):
        watch.beat()
        time.sleep(0.1)
    if rank == 0:
        watch.beat()
    time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_process_that_stands_still_ends_with_its_own_status():
    command = [sys.executable, "-c", WAITING]
    port, told = str(free_port()), []
    processes = [
        subprocess.Popen([*command, str(rank), port], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    for process in processes:
        told.append(process.communicate(timeout=300)[1])
        assert process.returncode == STALLED
    assert f"process 1 on {socket.gethostname()} has not come as far as the others" in told[0]


# What happens to the second process before its step 7, two steps after a checkpoint.
ACCIDENTS = {"dead": "SIGKILL", "stopped": "SIGSTOP"}


@pytest.mark.slow
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_two_agents_start_again_after_one_process_is_gone(tmp_path, accident):
    """Two rendezvous agents, as of two nodes, each with one process."""
    overrides = {"optimization__batch_size": 16, "stall_seconds": 60, "evaluation__suite": "[likelihood]"}
    assert launch(tmp_path / "whole", *TORCHRUN, **overrides).returncode == 0
    script = tmp_path / "gone.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, signal, sys

            from training.pretrain import main
            from training.pretraining.run import Run


            def step_or_go(self, *batch, step=Run.step):
                once = pathlib.Path({str(tmp_path / "it_happened")!r})
                if self.progress.step == 6 and os.environ["RANK"] == "1" and not once.exists():
                    once.touch()
                    os.kill(os.getpid(), signal.{ACCIDENTS[accident]})
                return step(self, *batch)


            Run.step = step_or_go
            sys.exit(main())
            """
        )
    )
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    agent += ["--max-restarts", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}"]
    command = [*agent, str(script), str(DIGITS_YAML), *small_overrides(tmp_path / "gone", **overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    logs = [open(tmp_path / f"agent_{i}.log", "w+") for i in range(2)]  # noqa: SIM115
    agents = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) for log in logs]
    try:
        assert [one.wait(timeout=1200) for one in agents] == [0, 0], Path(logs[0].name).read_text()
    finally:
        for one in agents:
            one.terminate()  # with the processes that it started
    told = "".join(Path(log.name).read_text() for log in logs)
    assert "Resuming from step 4" in told
    assert accident == "dead" or f"process 1 on {socket.gethostname()} is silent" in told
    assert_same_run(tmp_path / "whole", tmp_path / "gone")
