"""The configuration: what it refuses and how it says so, that it survives saving, and the named sizes."""

import copy
import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ViTConfig, ViTModel

from modeling_hybrid import NAMED_SIZES, HybridConfig, HybridForImageGeneration, HybridForPreTraining, HybridModel


REFUSED = [
    ({"image_size": 30}, "image_size=30 is not a multiple of patch_size=4"),
    ({"hidden_size": 100}, "hidden_size=100 is not a multiple of num_attention_heads=8"),
    ({"depth_hidden_size": 100}, "depth_hidden_size=100 is not a multiple of num_depth_groups=8"),
    ({"hidden_size": 6, "num_attention_heads": 2}, "hidden_size=6 must be a multiple of 4"),
    ({"image_size": 0}, "image_size=0 must be at least 1"),
    ({"num_encoder_layers": 0}, "num_encoder_layers=0 must be at least 1"),
    ({"num_decoder_layers": -1}, "num_decoder_layers=-1 must not be negative"),
    ({"num_view_kinds": 0}, "num_view_kinds=0 must be at least 1"),
    ({"num_levels": 1}, "num_levels=1 must lie in 2..256"),
    ({"num_levels": 257}, "num_levels=257 must lie in 2..256"),
    ({"num_channels": 4}, "num_channels=4 must be 1 (grey) or 3 (RGB)"),
    ({"hidden_dropout": 1.0}, "hidden_dropout=1.0 must lie in [0, 1)"),
    ({"attention_dropout": -0.1}, "attention_dropout=-0.1 must lie in [0, 1)"),
    ({"contrastive_weight": -1}, "contrastive_weight=-1 must be 0 (off) or positive"),
    ({"generative_weight": float("nan")}, "generative_weight=nan must be 0 (off) or positive"),
    ({"contrastive_weight": float("inf")}, "contrastive_weight=inf must be 0 (off) or positive"),
    ({"condition_noise": float("inf")}, "condition_noise=inf must be 0 (off) or positive"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be positive"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan must be positive"),
    ({"contrastive_weight": 0, "generative_weight": 0}, "both 0"),
    ({"encoder_attention": "bidirectional"}, "has no likelihood"),
    ({"encoder_attention": "sideways"}, "encoder_attention"),
    ({"pooling": "max"}, "pooling"),
    ({"pooling": "regional", "pooling_grid": 9}, "pooling_grid=9 must be at most 8"),
    ({"pooling": "contextual", "pooling_grid": 9}, "pooling_grid=9 must be at most 8"),
    ({"pooling_grid": 0}, "pooling_grid=0 must be at least 1"),
    ({"hidden_act": "gelou"}, "hidden_act has no key 'gelou'; the nearest known key is 'gelu'"),
    ({"hidden_size": "256"}, "hidden_size"),
    ({"hidden_size": 256.0}, "hidden_size"),
    ({"objective": "info_nce"}, "objective"),
    ({"objective": {"temperature": 0.2}}, "has no 'name'"),
    ({"objective": {"name": None}}, "has no 'name'"),
    ({"hiden_size": 64}, "no key 'hiden_size'; the nearest known key is 'hidden_size'"),
    ({"layer_norm_epsilon": 1e-5}, "no key 'layer_norm_epsilon'; the nearest known key is 'layer_norm_eps'"),
    ({"num_hidden_layers": 3}, "no key 'num_hidden_layers'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_at_construction(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=re.escape(message)):
        HybridConfig(**fields)


def test_types_are_checked_on_assignment():
    config = HybridConfig()
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        config.hidden_size = "wide"


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "info_nse"}, "no key 'info_nse'; the nearest known key is 'info_nce'"),
        ({"name": "info_nce", "temprature": 0.1}, "no key 'temprature'; the nearest known key is 'temperature'"),
        ({"name": "info_nce", "temperature": 0}, "temperature=0 must be positive"),
        ({"name": "info_nce", "temperature": -0.1}, "temperature=-0.1 must be positive"),
        (
            {"name": "info_nce", "temperature": "warm"},
            "temperature='warm' of objective 'info_nce' must be of type float",
        ),
        ({"name": "siglip", "bias": float("inf")}, "bias=inf of objective 'siglip' must be of type float, and finite"),
        ({"name": "swav", "num_prototypes": 2.5}, "num_prototypes=2.5 of objective 'swav' must be of type int"),
        ({"name": "isogclr", "num_samples": -1}, "num_samples=-1 must be positive"),
    ],
)
def test_objectives_refused_by_the_model(tiny_config, objective, message):
    with pytest.raises(ValueError, match=message):
        HybridForPreTraining(tiny_config(objective=objective))


def test_survives_saving(tiny_config, tmp_path):
    config = tiny_config(
        pooling="regional",
        hidden_dropout=0.1,
        contrastive_weight=1,
        objective={"name": "info_nce", "temperature": 0.07},
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )
    config.save_pretrained(tmp_path)
    for loaded in (HybridConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is HybridConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert loaded.num_labels == 3
    assert HybridConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5
    assert HybridConfig.from_pretrained(tmp_path, hidden_dropout=0.2).hidden_dropout == 0.2


# Of torchao, of the Hub, of other models, and of whom ever.
KEYS_OF_OTHERS = {
    "custom_pipelines": {"surprise": {"impl": "surprise.Pipeline", "pt": ["AutoModelForCausalLM"]}},
    "initializer_range": 0.02,
    "my_note": "the third try",
    "pad_token_id": 0,
    "quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
    "tie_word_embeddings": False,
    "transformers.js_config": {"dtype": {"model": "q8"}},
}


def test_keys_of_others_are_kept(tiny_config, make_model, tmp_path):
    make_model(HybridModel).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text()) | KEYS_OF_OTHERS
    path.write_text(json.dumps(written))
    config = HybridConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert json.loads(path.read_text()) == written
    for again in (AutoConfig.from_pretrained(tmp_path), HybridConfig(**config.to_dict()), copy.deepcopy(config)):
        assert {name: getattr(again, name) for name in KEYS_OF_OTHERS} == KEYS_OF_OTHERS
    del written["quantization_config"]
    path.write_text(json.dumps(written))
    assert HybridModel.from_pretrained(tmp_path).config.my_note == "the third try"
    assert HybridModel(tiny_config(my_note="in code")).config.my_note == "in code"


def test_what_looks_misspelt_in_a_file_is_no_reason_not_to_load_it(make_model, caplog, monkeypatch, tmp_path):
    make_model(HybridModel).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"hidden_sizes": [7], "num_hidden_layers": 9}))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = HybridModel.from_pretrained(tmp_path).config
    assert "Nothing reads 'hidden_sizes'" in caplog.text and "nearest known key is 'hidden_size'" in caplog.text
    assert "Nothing reads 'num_hidden_layers'" in caplog.text
    assert config.num_hidden_layers == 3
    config.save_pretrained(tmp_path)
    assert json.loads(path.read_text()) == written | {"hidden_sizes": [7]}


def test_two_configurations_share_nothing():
    first, second = HybridConfig(), HybridConfig()
    first.auto_map["AutoModel"] = "elsewhere.Model"
    first.objective["temperature"] = 9.0
    assert second.auto_map["AutoModel"] == "modeling_hybrid.HybridModel"
    assert second.objective["temperature"] == 0.2


def test_checkpoint_of_another_model_type_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=4)
    ViTModel(config).save_pretrained(tmp_path)
    for load in (HybridConfig.from_pretrained, HybridModel.from_pretrained, HybridForPreTraining.from_pretrained):
        with pytest.raises(ValueError, match="checkpoint of model_type='vit', HybridConfig reads 'hybrid_gcrl'"):
            load(tmp_path)


def test_derived_sizes(tiny_config):
    config = tiny_config(num_channels=3, pooling="regional")
    assert (config.num_patches, config.num_codes, config.num_dims) == (4, 12, 48)
    assert (config.num_hidden_layers, config.pooled_size, config.intermediate_size) == (3, 64, 64)


# Pre-training model, generation model, encoder.
def test_type_checkers_see_a_misspelt_field(tmp_path):
    code = "from modeling_hybrid import HybridConfig\n\nHybridConfig(pooling='mean')\nHybridConfig(pooing='mean')\n"
    (tmp_path / "user.py").write_text(code)
    root = Path(inspect.getfile(HybridConfig)).parents[1]
    command = [sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--extra-search-path", root]
    done = subprocess.run([*command, "--output-format", "concise"], cwd=tmp_path, capture_output=True, text=True)
    assert "user.py:4:14: error[unknown-argument]" in done.stdout and done.stdout.count("error") == 1, done


COUNTS = {
    "tiny": (445_861, 345_957, 210_068),
    "small": (9_782_536, 8_334_472, 5_024_776),
    "base": (102_469_900, 96_165_900, 65_037_580),
}


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_named_sizes_have_the_parameters_stated(size):
    config = HybridConfig.from_size(size)
    with torch.device("meta"):
        models = [cls(config) for cls in (HybridForPreTraining, HybridForImageGeneration, HybridModel)]
    counts = tuple(model.num_parameters() for model in models)
    assert counts == COUNTS[size]
    for count in counts:
        assert f"{count:,}" in HybridConfig.from_size.__doc__


def test_named_sizes_by_name():
    config = HybridConfig.from_size("tiny", num_levels=5, pooling="mean")
    assert (config.hidden_size, config.num_levels, config.pooling) == (64, 5, "mean")
    base, vit = HybridConfig.from_size("base"), ViTConfig()
    assert (base.hidden_size, base.num_hidden_layers, base.num_attention_heads, base.intermediate_size) == (
        vit.hidden_size,
        vit.num_hidden_layers,
        vit.num_attention_heads,
        vit.intermediate_size,
    )
    with pytest.raises(ValueError, match="size='huge' is not a named size; choose one of tiny, small, base"):
        HybridConfig.from_size("huge")
