"""The configuration takes what is meant, and refuses the rest with the name of the value and the way out."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import differences, load_config, save_config


DIGITS_YAML = Path(__file__).parents[3] / "training" / "configs" / "digits.yaml"


def test_overrides_win_over_the_file_and_the_file_over_defaults():
    config = load_config(DIGITS_YAML, ["optimization.num_steps=7", "model.objective.temperature=0.5", "seed=3"])
    assert (config.optimization.num_steps, config.seed) == (7, 3)
    assert config.model_config().objective["temperature"] == 0.5
    assert config.model_config().hidden_size == 64  # of the named size in the file
    assert config.optimization.gradient_accumulation_steps == 1  # a default


def test_overrides_of_every_kind():
    config = load_config(
        DIGITS_YAML,
        [
            "optimization.learning_rate=1e-4",
            "augmentation.crop_area=[0.5,1]",
            "logging.trackers=[]",
            "data.validation_split=null",
            "data.arguments.data_files.train=a=b.parquet",
            "overwrite=true",
        ],
    )
    assert config.optimization.learning_rate == 1e-4
    assert config.augmentation.crop_area == [0.5, 1.0]
    assert config.logging.trackers == [] and config.data.validation_split is None and config.overwrite is True
    assert config.data.arguments == {"data_files": {"train": "a=b.parquet"}}


def test_resolved_configuration_round_trips(tmp_path):
    overrides = ["data.arguments.data_dir=photos", "augmentation.gamma=[]", "card.limitations='a: b # c'"]
    config = load_config(DIGITS_YAML, overrides)
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert differences(again, config) == []


def test_differences_name_the_values():
    one = load_config(DIGITS_YAML, ["data.arguments.data_dir=a"])
    other = load_config(DIGITS_YAML, ["seed=1", "optimization.num_steps=3", "data.arguments.name=b"])
    assert differences(one, other) == [
        "data.arguments.data_dir",
        "data.arguments.name",
        "optimization.num_steps",
        "seed",
    ]
    assert differences(one, replace(one, overwrite=True)) == ["overwrite"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # Unknown names, at every level: the nearest known one is given.
        ("outputdir=x", "'output_dir'"),
        ("optimisation.num_steps=3", "'optimization'"),
        ("optimization.num_step=3", "'num_steps'"),
        ("model.hiden_size=3", "'hidden_size'"),
        ("model.my_note=3", "no key 'my_note'"),
        ("model.objective.temprature=1", "'temperature'"),
        ("model.objective.name=infonce", "'info_nce'"),
        ("model.size=huge", "tiny, small, base"),
        ("optimization.betas.first=1", "not a tree"),
        # Types.
        ("optimization.num_steps=many", "optimization.num_steps: Value 'many'"),
        ("optimization.num_steps=1.5", "optimization.num_steps: Value '1.5'"),
        ("model.hidden_size=big", "'hidden_size' expected int"),
        ("optimization=3", "OptimizationConfig"),
        ("augmentation.gamma=[a,b]", "augmentation.gamma[0]"),
        ("logging.trackers=wandb", "logging.trackers"),
        ("output_dir=", "output_dir"),
        # Forms.
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("optimization.=3", "key=value"),
        ("model={size: tiny", "not a tree"),
        ("output_dir=${nowhere}", "nowhere"),
        # Ranges.
        ("optimization.num_steps=0", "optimization.num_steps=0 must be at least 1"),
        ("logging.evaluate_every=0", "at least 1"),
        ("optimization.learning_rate=0", "positive"),
        ("optimization.learning_rate=.nan", "positive"),
        ("optimization.betas=[0.9]", "two numbers"),
        ("optimization.precision=fp8", "bf16"),
        ("data.validation_fraction=1", "(0, 1)"),
        ("augmentation.padding=wrap", "reflection"),
        ("augmentation.crop_area=[0,1]", "(0, 1]"),
        ("augmentation.crop_area=[0.9,0.5]", "growing"),
        ("augmentation.crop_aspect=[]", "two growing"),
        ("augmentation.flip_probability=2", "[0, 1]"),
        ("evaluation.max_images=-1", "0, for all of them, or at least 2"),
        ("evaluation.max_images=1", "0, for all of them, or at least 2"),
        # Combinations.
        ("augmentation.num_augmented_views=0", "at least 2 view"),
        ("optimization.batch_size=1", "do not suit objective"),
        ("augmentation.hue=0.1", "grey"),
        ("model.num_view_kinds=1", "tag"),
        ("model.hidden_size=65", "not a multiple"),
        ("data.label_column=image", "different columns"),
        ("data.test_split=train", "data.test_split=null"),
        ("model.encoder_attention=bidirectional", "generative_weight=0"),
    ],
)
def test_refusals_say_what_and_how(override, said):
    with pytest.raises(ValueError) as refusal:
        load_config(DIGITS_YAML, [override])
    assert said in str(refusal.value)
    assert "full_key" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("model.objective={name: sup_con} data.label_column=null", "'sup_con' learns from labels"),
        ("model.objective={name: sup_con} data.streaming=true", "data.streaming=True"),
        ("model.objective={name: isogclr} data.streaming=true", "data.streaming=false"),
        ("model.objective={name: pixpro}", "augmentation.rotation_degrees=12"),
        ("model.objective={name: crd}", "'crd' learns from a teacher, but data.teacher=None"),
        ("model.objective={name: crd} data.teacher=x data.streaming=true", "data.teacher='x' and data.streaming=True"),
        ("data.teacher=x", "'info_nce' does not learn from a teacher, but data.teacher='x'"),
        ("model.objective={name: demi}", "num_local_views=0 do not suit objective 'demi'"),
        ("model.objective={name: mochi, num_hard: 0}", "num_hard=0"),
        ("augmentation.num_local_views=2", "use 3, or set augmentation.num_local_views=0"),
        ("augmentation.num_local_views=2 augmentation.local_crop_area=[] model.num_view_kinds=3", "local_crop_area=[]"),
        ("optimization.chunk_size=8 optimization.compile=true", "compile=false"),
        ("optimization.chunk_size=-1", "0 or more"),
        (
            "model.decoder_condition=features model.contrastive_weight=0 augmentation.num_augmented_views=0",
            "raise augmentation.num_augmented_views",
        ),
    ],
)
def test_what_an_objective_needs_is_there_before_anything_starts(overrides, said):
    with pytest.raises(ValueError) as refusal:
        load_config(DIGITS_YAML, re.split(r" (?=\w+\.)", overrides))
    assert said in str(refusal.value)


def test_an_objective_learns_how_many_images_there_are():
    config = load_config(DIGITS_YAML, ["model.objective={name: isogclr}"])
    assert config.model_config(num_train_images=7).objective["num_samples"] == 7
    config = load_config(DIGITS_YAML, ["model.objective={name: isogclr, num_samples: 9}"])
    assert config.model_config(num_train_images=7).objective["num_samples"] == 9
    with pytest.raises(ValueError, match="num_samples=9 is less than the 10 training images"):
        config.model_config(num_train_images=10)


def test_groups_and_streams_exclude_each_other():
    with pytest.raises(ValueError, match=r"data.streaming=false"):
        load_config(DIGITS_YAML, ["data.streaming=true", "data.group_column=family"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output_dir: a\noutput_dir: b\ndata: {dataset: digits}", "duplicate key output_dir"),
        ("output_dir: a\ndata:\n  dataset: digits\n  dataset: other", "duplicate key dataset"),
        ("data: {dataset: digits}", "output_dir"),
        ("output_dir: a", "data.dataset"),
        ("output_dir: a\ndata:\n  dataset: ???", "data.dataset"),
        ("output_dir: a\ndata:", "data"),
        ("- a\n- b", "not a tree"),
        ("a: [1", "not a tree"),
        ("", "output_dir"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError) as refusal:
        load_config(tmp_path / "config.yaml")
    assert said in str(refusal.value)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_one_loss_alone_needs_no_negatives_or_no_likelihood():
    load_config(DIGITS_YAML, ["model.contrastive_weight=0", "optimization.batch_size=1"])
    load_config(DIGITS_YAML, ["model.contrastive_weight=0", "augmentation.num_augmented_views=0"])
    load_config(DIGITS_YAML, ["model.generative_weight=0", "model.encoder_attention=bidirectional"])
