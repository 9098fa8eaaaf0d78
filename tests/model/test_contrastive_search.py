"""Contrastive search against a slow loop, in its limits, with and without a cache, and what it refuses."""

import pytest
import torch


@pytest.fixture
def model(make_model):
    """One code a patch, and states that are told apart."""
    return make_model(patch_size=1, image_size=4).eval()


def slow(model, codes, top_k, alpha):
    """One image at a time, from the whole sequence at every step."""
    found = []
    for image in codes:
        image = image.tolist()
        while len(image) < model.config.num_patches:
            prefix = torch.tensor(image, dtype=torch.long).view(1, -1, 1)
            kind = torch.zeros(1, dtype=torch.long)
            state = model.decoder_states(prefix, kind)[:, -1:]
            probabilities = model.depth_head(state, torch.zeros(1, 1, 1, dtype=torch.long))[0, 0, 0].softmax(0)
            scores = {}
            for level in probabilities.topk(top_k).indices.tolist():
                after = model.decoder_states(torch.tensor([[*image, [level]]]).view(1, -1, 1), kind)[0, 1:]
                scores[level] = probabilities[level].item()
                if image:
                    nearest = torch.nn.functional.cosine_similarity(after[-1:], after[:-1]).max().item()
                    scores[level] = (1 - alpha) * scores[level] - alpha * nearest
            image.append([max(scores, key=scores.get)])
        found.append(image)
    return torch.tensor(found)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("num_given", [0, 6])
def test_equals_the_slow_loop(model, num_given, use_cache):
    given = torch.randint(model.config.num_levels, (3, num_given, 1))
    arguments = {"codes": given} if num_given else {"batch_size": 3}
    found = model.generate(**arguments, penalty_alpha=0.6, top_k=3, use_cache=use_cache)
    with torch.no_grad():
        expected = slow(model, given, 3, 0.6)
    assert torch.equal(found, expected)
    assert not torch.equal(found, model.generate(**arguments, do_sample=False))


def test_without_a_penalty_or_a_choice_it_is_greedy(model):
    given = torch.randint(model.config.num_levels, (2, 5, 1))
    greedy = model.generate(codes=given, do_sample=False)
    assert torch.equal(model.generate(codes=given, penalty_alpha=1e-9, top_k=3), greedy)
    assert torch.equal(model.generate(codes=given, penalty_alpha=0.6, top_k=1), greedy)
    assert torch.equal(model.generate(codes=given, penalty_alpha=0.0, top_k=3, do_sample=False), greedy)


def test_patches_are_streamed_and_nothing_is_drawn(model):
    class Streamer:
        parts, ended = [], False

        def put(self, codes):
            self.parts.append(codes)

        def end(self):
            self.ended = True

    streamer, state = Streamer(), torch.get_rng_state()
    codes = model.generate(batch_size=2, penalty_alpha=0.6, top_k=50, streamer=streamer)  # more than there are levels
    assert torch.equal(torch.cat(streamer.parts, dim=1), codes) and streamer.ended
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"penalty_alpha": 0.6}, "needs do_sample=False and top_k of 2 or more, not do_sample=False and top_k=0"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": True}, "not do_sample=True and top_k=4"),
        ({"penalty_alpha": 1.5, "top_k": 4}, "penalty_alpha=1.5 must lie in 0..1"),
        ({"penalty_alpha": 0.6, "top_k": 4, "cache_implementation": "static"}, "StaticCache cannot"),
    ],
)
def test_what_it_cannot_do_is_told(model, arguments, said):
    with pytest.raises(ValueError, match=said):
        model.generate(batch_size=1, **arguments)


def test_patches_of_several_codes_are_refused(make_model):
    with pytest.raises(ValueError, match="a patch of this model has 4"):
        make_model(patch_size=2, image_size=4).eval().generate(batch_size=1, penalty_alpha=0.6, top_k=4)
