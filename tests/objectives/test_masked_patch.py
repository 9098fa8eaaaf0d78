"""The masked contrast against a slow loop; what may and what may not reach queries and keys."""

import pytest
import torch
from objective_fixtures import change, draw_batch, gradients, make

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.masked_patch import MaskedPatch


def slow(objective: MaskedPatch, batch: ObjectiveBatch) -> torch.Tensor:
    states, embeddings = batch.decoder_states.flatten(0, 2), batch.patch_embeddings.flatten(0, 2)
    codes = [tuple(code) for code in batch.codes.flatten(0, 2).tolist()]
    norm = lambda row: row / row.norm()  # noqa: E731
    keys = {code: norm(row) for code, row in zip(codes, embeddings, strict=True)}
    commonest = max(sorted(set(codes)), key=codes.count)
    losses = []
    for state, code in zip(states, codes, strict=True):
        if code != commonest:
            query = norm(objective.query.weight.double() @ state)
            logits = {other: query @ key / objective.temperature for other, key in keys.items()}
            losses.append(torch.stack(list(logits.values())).logsumexp(0) - logits[code])
    return torch.stack(losses).mean()


def test_equals_the_slow_loop():
    batch, objective = draw_batch(batch_size=3), make("masked_patch", temperature=0.3).double()
    loss, telemetry = objective(batch)
    torch.testing.assert_close(loss, slow(objective, batch))
    assert telemetry["different_patches"] == len({tuple(code) for code in batch.codes.flatten(0, 2).tolist()})


def test_no_gradient_reaches_the_keys():
    batch, objective = draw_batch(), make("masked_patch").double()
    batch.patch_embeddings.requires_grad_()
    objective(batch)[0].backward()
    assert set(gradients(batch, objective)) == {"decoder_states", "query.weight"}


def test_the_commonest_patch_is_not_asked_for():
    batch, objective = draw_batch(), make("masked_patch")
    codes = batch.codes.clone()
    codes[:, :, :3] = 0
    batch.codes, batch.patch_embeddings = codes, torch.nn.functional.one_hot(codes[..., 0] * 3 + codes[..., 1], 9)
    batch.patch_embeddings = batch.patch_embeddings[..., :5].double() + 0.1
    objective(batch)[0].backward()
    reached = batch.decoder_states.grad.abs().sum(-1) > 0
    assert torch.equal(reached, (codes != 0).any(dim=-1)) and reached.any()
    everywhere = change(batch, lambda name, part: torch.zeros_like(part) if name == "codes" else part.detach())
    assert objective(everywhere)[0] == 0


def test_queries_are_blind_to_their_patch_and_keys_to_all_but_theirs(make_model, draw_images):
    """In the model: a change of patch s leaves the states that are asked for s and before, and the keys of others."""
    model = make_model(objective={"name": "masked_patch"}).eval()
    images = draw_images(model.config, 2)
    changed, size = images.clone(), model.config.patch_size
    changed[:, :, -size:, :size] = -changed[:, :, -size:, :size]  # the first patch of the last row
    place = model.config.num_patches - model.config.image_size // size

    def parts(pixel_values):
        views = model.represent(pixel_values)
        return views.decoder_states, model.keys(views)["patch_embeddings"][0]

    (states, keys), (other_states, other_keys) = parts(images), parts(changed)
    torch.testing.assert_close(states[:, : place + 1], other_states[:, : place + 1])
    assert (states[:, place + 1 :] - other_states[:, place + 1 :]).abs().max() > 1e-3
    others = torch.arange(model.config.num_patches) != place
    assert torch.equal(keys[:, others], other_keys[:, others]) and not torch.equal(keys[:, place], other_keys[:, place])


def test_the_momentum_embedding_follows(make_model, draw_images):
    model = make_model(objective={"name": "masked_patch", "momentum": 0.75}).train()
    followed, own = (each.embeddings.code_embedding.weight for each in (model.encoder, model.momentum_encoder))
    expected = 0.75 * own + 0.25 * followed.detach()
    assert (own - expected).abs().max() > 1e-3  # the fixture draws all weights
    model.update_momentum_encoder()
    torch.testing.assert_close(own, expected)
    model(draw_images(model.config, 2)).loss.backward()
    assert all(parameter.grad is None for parameter in model.momentum_encoder.parameters())


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"momentum": 1.0}, {"hidden_size": 0}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        make("masked_patch", **arguments)
