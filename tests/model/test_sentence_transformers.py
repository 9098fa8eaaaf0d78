"""A checkpoint in sentence-transformers, where nothing of ours is installed: its vectors are `pooler_output`."""

import numpy as np
import pytest
from PIL import Image

from modeling_hybrid import HybridForOutOfDistributionDetection, HybridForPreTraining, HybridImageProcessor


pytest.importorskip("sentence_transformers")

LOAD = """
import numpy as np, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoModel

def load(folder):
    return SentenceTransformer(folder, trust_remote_code=True, device="cpu")

def pooled(folder, paths):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        return getattr(model, "encoder", model)(**processor(paths, return_tensors="pt")).pooler_output.numpy()
"""


@pytest.fixture
def paths(tmp_path):
    found = []
    for i in range(7):
        found.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 5), dtype="uint8")).save(found[-1])
    return found


@pytest.fixture
def save(make_model, tmp_path):
    def save(model_class=HybridForPreTraining, **options) -> str:
        model = make_model(model_class, **options)
        for part in (model, HybridImageProcessor.from_config(model.config)):
            part.save_pretrained(tmp_path / "checkpoint")
        return str(tmp_path / "checkpoint")

    return save


@pytest.mark.parametrize(
    ("model_class", "pooling"),
    [
        (HybridForPreTraining, "contextual"),
        (HybridForPreTraining, "attention"),
        (HybridForOutOfDistributionDetection, "mean"),
    ],
)
def test_vectors_are_those_of_the_checkpoint(save, paths, run_python, model_class, pooling):
    folder = save(model_class, pooling=pooling)
    code = f"""
folder, paths = {folder!r}, {paths!r}
model = load(folder)
expected = pooled(folder, paths)
vectors = model.encode(paths, batch_size=3)
np.testing.assert_allclose(vectors, expected, atol=1e-6)
np.testing.assert_allclose(model.encode([Image.open(path) for path in paths]), expected, atol=1e-6)
np.testing.assert_allclose(model.encode(paths[0]), expected[0], atol=1e-6)
assert model.get_embedding_dimension() == vectors.shape[1] and "image" in model.modalities
lengths = np.linalg.norm(expected, axis=1, keepdims=True)
np.testing.assert_allclose(model.encode(paths, normalize_embeddings=True), expected / lengths, atol=1e-6)
cosines = (expected / lengths) @ (expected / lengths).T
np.testing.assert_allclose(model.similarity(vectors, vectors), cosines, atol=1e-5)
# Lazily: the first batches are encoded before the last image is looked for.
calls = []
model[0].register_forward_hook(lambda *_: calls.append(1))
try:
    model.encode([*paths, "/nowhere.png"], batch_size=2)
    raise SystemExit("a missing image was encoded")
except (OSError, ValueError):
    assert len(calls) == 3
print("all agree")
"""
    assert "all agree" in run_python(LOAD + code, package=False)


def test_into_a_vector_store(save, paths, run_python):
    """FAISS through `datasets`: the nearest of an image is itself, then what `similarity` says."""
    pytest.importorskip("faiss")
    code = f"""
import datasets, faiss
paths, model = {paths!r}, load({save()!r})
encode = lambda images: model.encode(images, normalize_embeddings=True)
rows = datasets.Dataset.from_dict({{"path": paths}})
rows = rows.map(lambda batch: {{"vector": encode(batch["path"])}}, batched=True, batch_size=3)
rows.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
scores, found = rows.get_nearest_examples("vector", encode(paths[3]), k=4)
expected = model.similarity(model.encode(paths[3]), model.encode(paths))[0].sort(descending=True)
assert found["path"] == [paths[i] for i in expected.indices[:4]] and found["path"][0] == paths[3]
np.testing.assert_allclose(scores, expected.values[:4], atol=1e-5)
print("all agree")
"""
    assert "all agree" in run_python(LOAD + code, package=False)


@pytest.mark.slow
def test_saved_again_and_in_several_processes(save, paths, run_python, tmp_path):
    folder, again, script = save(pooling="regional"), str(tmp_path / "again"), tmp_path / "script.py"
    script.write_text(
        LOAD
        + f"""
if __name__ == "__main__":
    paths, model = {paths!r} * 3, load({folder!r})
    expected = model.encode(paths)
    np.testing.assert_allclose(model.encode(paths, device=["cpu", "cpu"], chunk_size=4), expected, atol=1e-6)
    model.save_pretrained({again!r})
    np.testing.assert_allclose(load({again!r}).encode(paths), expected, atol=1e-6)
    print("all agree")
"""
    )
    start = f"import subprocess, sys\nprint(subprocess.run([sys.executable, {str(script)!r}], text=True, "
    start += "capture_output=True))"
    assert "all agree" in run_python(start, package=False)
