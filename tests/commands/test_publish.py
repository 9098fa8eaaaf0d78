"""`hybrid publish`: what goes, what stays, and a load of it by name."""

import json
import shutil

import pytest

from modeling_hybrid.configuration_hybrid import SENTENCE_TRANSFORMERS


@pytest.fixture
def run(tmp_path, checkpoint):
    """A run folder, with what must not leave it."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoint, folder / "model")
    for name in ("README.md", "figures/samples.png"):
        (folder / "model" / name).parent.mkdir(exist_ok=True)
        (folder / "model" / name).write_text("of the card")
    for name in (
        "state/x.pkl",
        "log.jsonl",
        "config.yaml",
        "trainer_state.json",
        "optimizer.bin",
        "state/model.safetensors",
    ):
        for place in (folder, folder / "model"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text("stays")
    (folder / "model" / "secret.md").symlink_to(folder / "config.yaml")
    return folder


def listed(result) -> set[str]:
    return {line.split()[1] for line in result.stdout.splitlines()[:-1]}


def test_list_without_sending(hybrid, run, monkeypatch):
    monkeypatch.setattr("modeling_hybrid.commands.publish.push", lambda *_: pytest.fail("it was sent"))
    result = hybrid("publish", run, "someone/digits")
    names = listed(result)
    kept = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "figures/samples.png"}
    assert kept | SENTENCE_TRANSFORMERS.keys() <= names and "info_nce.py" in names
    unwanted = ("x.pkl", "log.jsonl", "config.yaml", "trainer_state.json", "optimizer.bin", "secret.md", "state")
    assert not [name for name in names for one in unwanted if one in name]
    assert ", private: someone/digits" in result.stdout and "Nothing was sent" in result.stderr
    assert ", public: someone/digits" in hybrid("publish", run, "someone/digits", "--public").stdout


def test_snapshot_in_the_cache_of_the_client(hybrid, run, tmp_path):
    """Its files are links to blobs; a link to anywhere else stays."""
    folder = tmp_path / "models--someone--digits" / "snapshots" / "0123abc"
    blobs = folder.parent.parent / "blobs"
    (folder / "figures").mkdir(parents=True)
    blobs.mkdir()
    expected = {name: (run / "model" / name) for name in listed(hybrid("publish", run, "digits"))}
    for number, (name, path) in enumerate(expected.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, blobs / str(number))
        (folder / name).symlink_to(f"../../{'../' * name.count('/')}blobs/{number}")
    (folder / "secret.md").symlink_to(run / "config.yaml")
    assert listed(hybrid("publish", folder, "digits")) == expected.keys()
    # The same links outside of such a cache lead anywhere.
    folder.parent.rename(folder.parent.with_name("elsewhere"))
    moved = folder.parent.with_name("elsewhere") / folder.name
    assert "safetensors" in hybrid("publish", moved, "digits", code=1).stderr


def test_card_of_the_run(hybrid, run):
    shutil.move(run / "model" / "README.md", run / "README.md")
    shutil.move(run / "model" / "figures", run / "figures")
    names = listed(hybrid("publish", run, "digits"))
    assert {"README.md", "figures/samples.png"} <= names and "log.jsonl" not in names
    (run / "README.md").unlink()
    assert "There is no card" in hybrid("publish", run, "digits").stderr


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "preprocessor_config.json", "info_nce.py", "transformer.py"]
)
def test_incomplete_checkpoint(hybrid, run, missing):
    (run / "model" / missing).unlink()
    result = hybrid("publish", run, "digits", code=1)
    assert ("safetensors" if "safetensors" in missing else missing) in result.stderr and not result.stdout


def test_token_in_a_card(hybrid, run):
    token = "hf_" + "a" * 34
    (run / "model" / "README.md").write_text(f"login({token!r})")
    result = hybrid("publish", run, "digits", code=1)
    assert "README.md" in result.stderr and token not in result.output


@pytest.mark.slow
def test_publish_and_load(hub, run, run_python):
    def publish(*options):
        return run_python(
            f"""
            from typer.testing import CliRunner
            from modeling_hybrid.commands.app import app

            result = CliRunner().invoke(app, ["publish", {str(run)!r}, "published", "--yes", *{options!r}])
            print(result.exit_code, result.output)
            """,
            loopback=True,
        )

    output = publish()
    assert output.startswith("0 ") and f"{hub.endpoint}/someone/published" in output, output
    assert 'from_pretrained("someone/published"' in output and "someone/published" in hub.private
    files = hub.files("someone/published")
    assert files["figures/samples.png"] == b"of the card" and not [name for name in files if "state" in name]
    refused = publish("--public")
    assert refused.startswith("1 ") and "leave out --public" in refused and "x" * 34 not in refused
    assert publish().startswith("0 ")  # whatever was refused, the next one goes on
    assert "loaded" in run_python(
        """
        import numpy as np
        from PIL import Image
        from sentence_transformers import SentenceTransformer
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained("someone/published", trust_remote_code=True).eval()
        processor = AutoImageProcessor.from_pretrained("someone/published", trust_remote_code=True)
        image = Image.linear_gradient("L")
        expected = model(**processor(image, return_tensors="pt")).pooler_output.detach().numpy()
        encoder = SentenceTransformer("someone/published", trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(encoder.encode([image]), expected, atol=1e-6)
        print("loaded")
        """,
        package=False,
        loopback=True,
    )


def test_failed_push_tells_no_token(hybrid, run, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    token = "hf_" + "a" * 34

    def fail(*arguments, **options):
        raise HfHubHTTPError.__bases__[0](f"no way with {token}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    result = hybrid("publish", run, "digits", "--yes", code=1)
    assert "was not published" in result.stderr and "no way" in result.stderr and token not in result.output


def test_a_checkpoint_without_code_says_how_to_add_it(hybrid, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "bare")
    for name in ("config.json", "preprocessor_config.json"):
        config = json.loads((tmp_path / "bare" / name).read_text())
        config.pop("auto_map")
        (tmp_path / "bare" / name).write_text(json.dumps(config))
    assert "has no auto_map" in hybrid("publish", tmp_path / "bare", "some/name", code=1).stderr
