"""The commands and files that start many processes are what the programs that they call accept."""

import shlex
import subprocess

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from documents import ROOT, TEXTS, blocks
from torch.distributed.run import get_args_parser

from training.config import load_config


PAGE = TEXTS["training/pretraining/README.md"]
SCRIPT = next(block for block in blocks(PAGE, "bash") if "#SBATCH" in block)
MANIFEST = yaml.safe_load(*blocks(PAGE, "yaml"))
POD = MANIFEST["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def pretrainings() -> list[list[str]]:
    """The words of each command that trains, from its launcher on."""
    lines = "\n".join(blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if "training.pretrain" in line] + [POD["containers"][0]["command"]]
    is_launcher = ("torchrun", "accelerate", "python").__contains__
    return [of_line[next(i for i, word in enumerate(of_line) if is_launcher(word)) :] for of_line in words]


@pytest.mark.parametrize("words", pretrainings(), ids=" ".join)
def test_launchers_and_configuration_accept_the_command(words):
    launcher, *arguments = words
    if launcher == "python":
        assert arguments.pop(0) == "-m"
        module, *arguments = arguments
    else:
        parser = get_args_parser() if launcher == "torchrun" else launch_command_parser()
        found = parser.parse_args(arguments if launcher == "torchrun" else arguments[1:])
        module, arguments = found.training_script, found.training_script_args
        assert found.module
    assert module == "training.pretrain"
    config, *overrides = arguments
    assert load_config(ROOT / config, overrides).output_dir


def test_the_script_of_slurm_is_one():
    assert subprocess.run(["bash", "-n"], input=SCRIPT, text=True, capture_output=True).stderr == ""


def test_the_manifest_mounts_what_it_has():
    mounted = [mount["name"] for container in POD["containers"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in POD["volumes"])
    elastic, workers = MANIFEST["spec"]["elasticPolicy"], MANIFEST["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert elastic["minReplicas"] <= workers["replicas"] <= elastic["maxReplicas"]
