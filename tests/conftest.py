"""What the tests share: small models with weights that hide nothing, a state that no test changes, other processes."""

import os
from textwrap import dedent

import pytest
import torch
from accelerate_fixtures import reset_accelerate
from hub_server import Hub
from model_fixtures import TINY
from other_processes import Interpreter

from modeling_hybrid import HybridConfig, HybridForPreTraining


def pytest_configure(config):
    """Workers of pytest-xdist share the cores: one thread for each, and for the processes that it starts."""
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _state():
    """Every test begins with the same random numbers, and leaves nothing behind that would change another."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    reset_accelerate()


@pytest.fixture
def one_thread():
    """Tiny operators lose more than they gain by a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config():
    """Builds a `HybridConfig` of the smallest sizes, with fields overridden by keyword."""
    return lambda **overrides: HybridConfig(**{**TINY, **overrides})


@pytest.fixture(scope="session")
def make_model(tiny_config):
    """
    Builds a tiny model in eval mode. Noise on every parameter, so that nothing which starts at zero, one or equal hides
    a path that should not be there.
    """

    def make(model_class=HybridForPreTraining, noise=0.2, **overrides):
        model = model_class(tiny_config(**overrides)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def draw_images():
    """Draws `num` random images (num, C, H, W) on the grid of levels of a config."""

    def draw(config, num=3, dtype=torch.float32):
        shape = (num, config.num_channels, config.image_size, config.image_size)
        return torch.randint(config.num_levels, shape).to(dtype) * (2 / (config.num_levels - 1)) - 1

    return draw


@pytest.fixture(scope="session")
def hub():
    """The Hub of the interpreters below, on this machine."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory, hub):
    """{whether `modeling_hybrid` can be imported there: an interpreter}."""
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_" + "x" * 34, "HF_HUB_DISABLE_XET": "1"}
    found = {
        package: Interpreter(tmp_path_factory.mktemp("elsewhere"), package, **environment) for package in (True, False)
    }
    yield found
    for interpreter in found.values():
        interpreter.end()


@pytest.fixture
def run_python(interpreters):
    """
    Runs `code` in a process outside the repository, with empty Hugging Face caches, and returns what it printed.

    Args:
        package: whether `modeling_hybrid` can be imported there.
        loopback: whether this machine may be connected to; every other connection, tried once, ends the process.
    """
    return lambda code, package=True, loopback=False: interpreters[package].run(
        dedent(code), ("127.0.0.1",) if loopback else ()
    )
