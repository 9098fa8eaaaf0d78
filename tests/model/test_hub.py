"""Pushing to a Hub and loading from it by name, through the real client and a server on this machine."""

import torch

from modeling_hybrid import HybridImageProcessor


def test_push_and_load_by_name(hub, make_model, draw_images, run_python, tmp_path):
    model = make_model()
    x = draw_images(model.config, 4)
    with torch.no_grad():
        loss, features = model(x.view(2, 2, *x.shape[1:])).loss, model.encoder(x).pooler_output
    torch.save((x, loss, features), tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "local")
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path / "local")
    run_python(
        f"""
        from modeling_hybrid import HybridForPreTraining, HybridImageProcessor

        local = {str(tmp_path / "local")!r}
        model = HybridForPreTraining.from_pretrained(local)
        processor = HybridImageProcessor.from_pretrained(local)
        model.push_to_hub("hybrid-digits")
        processor.push_to_hub("hybrid-digits")
        model.save_pretrained({str(tmp_path / "pushed")!r}, push_to_hub=True, repo_id="in-one-go")
        """,
        loopback=True,
    )
    files = hub.files("someone/hybrid-digits")
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "info_nce.py", "README.md"} <= set(files)
    assert not [path for path in files if path.endswith(".bin")]
    assert {"model.safetensors", "info_nce.py"} <= set(hub.files("someone/in-one-go"))

    # Whoever pins a commit gets all code of that commit, the objective included.
    pinned = list(hub.repositories["someone/hybrid-digits"])[-1]
    hub.commit("someone/hybrid-digits", {"info_nce.py": b"raise RuntimeError('code of a later commit')"})

    output = run_python(
        f"""
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

        x, loss, features = torch.load({str(tmp_path / "expected.pt")!r})
        name, trust = "someone/hybrid-digits", dict(trust_remote_code=True, revision={pinned!r})
        with torch.no_grad():
            torch.testing.assert_close(AutoModel.from_pretrained(name, **trust)(x).pooler_output, features)
            pretraining = AutoModelForPreTraining.from_pretrained(name, **trust)
            torch.testing.assert_close(pretraining(x.view(2, 2, *x.shape[1:])).loss, loss)
        processor = AutoImageProcessor.from_pretrained(name, **trust)
        images = processor.pixels_to_images(x)
        torch.testing.assert_close(processor(images, return_tensors="pt").pixel_values, x)
        extract = pipeline("image-feature-extraction", model=name, pool=True, **trust)
        torch.testing.assert_close(torch.tensor(extract(images)).flatten(0, 1), features, rtol=1e-4, atol=1e-4)
        print("all agree")
        """,
        package=False,
        loopback=True,
    )
    assert "all agree" in output
