"""A configuration reads no environment and holds no secret; one that came with a checkpoint does not reach out."""

import pytest
from training_fixtures import DIGITS_YAML, small_config

from training import evaluate, finetune, replay
from training.config import load_config, load_config_beside, save_config


SECRET = "hf_" + "Secret" * 6


@pytest.fixture
def written(tmp_path):
    """Writes a configuration that lies beside a checkpoint, and returns the checkpoint."""

    def write(text: str):
        (tmp_path / "config.yaml").write_text(f"output_dir: out\n{text}")
        return tmp_path / "model"

    return write


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {dataset: digits, arguments: {data_files: 'http://127.0.0.1/${oc.env:HF_TOKEN}'}}", "data_files"),
        ("data: {dataset: digits}\ncard: {limitations: 'a ${oc.env:HF_TOKEN,none} b'}", "card.limitations"),
        ("data: {dataset: digits}\ncard: {limitations: '${seed} ${oc.decode:${oc.env:HF_TOKEN}}'}", "card.limitations"),
        ("data: {dataset: digits}\ncard: {limitations: '\\${oc.env:HF_TOKEN}'}", "card.limitations"),
        ("data: ${oc.env:HF_TOKEN}", "data"),
        ("data: {dataset: digits}\nevaluation: {suite: ['${oc.env:HF_TOKEN}']}", r"evaluation.suite\[0\]"),
    ],
)
def test_the_environment_is_not_read(written, monkeypatch, capsys, text, key):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    checkpoint = written(text)
    with pytest.raises(ValueError, match=rf"{key}: .* resolves no environment"):
        load_config(checkpoint.parent / "config.yaml")
    assert evaluate.main([str(checkpoint)]) == 1
    assert finetune.main(["--checkpoint", str(checkpoint)]) == 1
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err


def test_overrides_read_no_environment_either_but_keys_are_read(tmp_path):
    with pytest.raises(ValueError, match=r"card\.model_name: "):
        small_config(tmp_path, card__model_name="${oc.env:HOME}")
    assert small_config(tmp_path, card__model_name="seed ${seed}").card.model_name == "seed 0"


@pytest.mark.parametrize(
    "override",
    [
        f"data.arguments.token={SECRET}",
        f"data.arguments.name={SECRET}",
        f"card.limitations=see {SECRET}",
        "data.arguments.token=another",
        "data.arguments.storage_options.secret=another",
        "data.arguments.storage_options.aws_secret_access_key=another",
        "data.arguments.data_files=https://me:another@127.0.0.1/a.parquet",
    ],
)
def test_secrets_are_refused_and_not_repeated(override):
    with pytest.raises(ValueError, match="HF_TOKEN") as refused:
        load_config(DIGITS_YAML, [override])
    assert override.split("=")[0] in str(refused.value)
    assert SECRET not in str(refused.value) and "another" not in str(refused.value)


def test_what_only_looks_like_a_secret_is_accepted():
    accepted = ["data.arguments.token=true", "data.arguments.author=me", "data.arguments.data_files=https://a.org/b:c"]
    assert load_config(DIGITS_YAML, accepted).data.arguments["token"] is True


REMOTE = "http://127.0.0.1:9/a.parquet"


@pytest.mark.parametrize(
    "data",
    [
        f"{{dataset: digits}}\nevaluation: {{foreign_datasets: ['{REMOTE}']}}",
        f"{{dataset: parquet, arguments: {{data_files: {{train: '{REMOTE}'}}}}}}",
        f"{{dataset: parquet, arguments: {{data_files: ['zip://a::{REMOTE}']}}}}",
        "{dataset: imagefolder, arguments: {data_dir: 'hf://datasets/someone/images'}}",
        "{dataset: 's3://bucket/images'}",
    ],
)
def test_other_machines_are_read_only_where_the_user_names_them(written, capsys, data):
    checkpoint = written(f"data: {data}")
    with pytest.raises(ValueError, match=r"came with the checkpoint and reads (data|evaluation)\..*--config"):
        load_config_beside(checkpoint, None)
    assert evaluate.main([str(checkpoint)]) == 1
    assert finetune.main(["--checkpoint", str(checkpoint)]) == 1
    assert replay.main([str(checkpoint.parent)]) == 1
    assert capsys.readouterr().err.count("came with the checkpoint") == 3
    load_config_beside(checkpoint, checkpoint.parent / "config.yaml")  # named as a whole


def test_a_location_is_named_by_its_value(written):
    checkpoint = written(f"data: {{dataset: parquet, arguments: {{data_files: {{train: '{REMOTE}'}}}}}}")
    load_config_beside(checkpoint, None, [f"data.arguments.data_files.train={REMOTE}"])
    load_config_beside(checkpoint, None, ["data.dataset=digits", "data.arguments={data_files: null}"])
    with pytest.raises(ValueError, match="came with the checkpoint"):
        load_config_beside(checkpoint, None, ["data.dataset=parquet"])


@pytest.mark.parametrize("dataset", ["digits", "someone/a-set-of-the-hub", "imagefolder"])
def test_a_run_of_ones_own_needs_no_naming(tmp_path, dataset):
    arguments = {"data__arguments__data_dir": "/a/folder"} if dataset == "imagefolder" else {}
    config = small_config(tmp_path, data__dataset=dataset, **arguments)
    save_config(config, tmp_path / "config.yaml")
    assert load_config_beside(tmp_path / "model", None) == config
