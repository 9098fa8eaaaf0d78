"""`hybrid info`: sizes, losses, and the figures of a card."""

import json
import shutil

from training_fixtures import ROOT

from modeling_hybrid import HybridForPreTraining


def test_what_a_checkpoint_is(hybrid, checkpoint, tmp_path):
    folder = tmp_path / "run" / "model"
    shutil.copytree(checkpoint, folder)
    shutil.copy(ROOT / "model_cards/digits/README.md", folder)
    found = json.loads(hybrid("info", tmp_path / "run", "--json").stdout)
    assert found["class"] == "HybridForPreTraining" and found["image"] == "8 x 8 x 1, 17 levels"
    model = HybridForPreTraining.from_pretrained(checkpoint)
    assert sum(found["numbers stored"].values()) >= model.num_parameters()
    assert found["numbers stored"]["encoder"] >= model.encoder.num_parameters()
    assert found["data"] == "sklearn-digits"
    assert found["figures of the card"]["bits per dimension (sklearn-digits)"] == 1.7628
    text = hybrid("info", checkpoint).stdout
    assert "data: unknown: there is no card" in text and "contrast: info_nce, weight 0.1" in text


def test_sharded_weights_are_counted_as_whole_ones(hybrid, checkpoint, tmp_path):
    HybridForPreTraining.from_pretrained(checkpoint).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    whole, sharded = (json.loads(hybrid("info", folder, "--json").stdout) for folder in (checkpoint, tmp_path))
    assert sharded["numbers stored"] == whole["numbers stored"] != {}


def test_refused(hybrid, tmp_path):
    assert "config.json" in hybrid("info", tmp_path, code=1).stderr
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "'vit'" in hybrid("info", tmp_path, code=1).stderr
