"""Local units: each learns from its own stages alone, one unit is the plain model, and what a unit keeps is let go."""

import weakref

import pytest
import torch

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.info_nce import InfoNCE


DEPTH = 4
CONTRASTIVE = {"generative_weight": 0, "num_encoder_layers": DEPTH}
ATTENTION = pytest.mark.parametrize("attention", ["causal", "bidirectional"])
OVERLAP = pytest.mark.parametrize("overlap", [True, False], ids=["overlapping", "apart"])


@pytest.fixture
def views(draw_images, tiny_config):
    return draw_images(tiny_config(), 8).view(2, 4, 1, 4, 4)


def local(make_model, stages: int, overlap: bool, attention: str = "bidirectional", **overrides):
    units = {"local_stages": stages, "local_overlap": overlap, "encoder_attention": attention}
    return make_model(**CONTRASTIVE | units | overrides).double().train()


def gradients(model, loss) -> dict[str, torch.Tensor]:
    """Of the parameters that the loss reaches."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def written_out(model, views) -> list[torch.Tensor]:
    """The loss of each unit, layer by layer as the docstring has it, with all graphs at once."""
    encoder, units, is_causal = model.encoder, model.local_units, model.config.features_are_causal
    depth, span = DEPTH // model.config.local_stages, 1 + model.config.local_overlap
    codes = torch.stack([((view + 1) * 2).round().long() for view in views.flatten(0, 1)])
    codes = codes.view(8, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4, 4)
    states, losses = encoder.embeddings(codes, torch.zeros(8, dtype=torch.long), 0), []
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None] if is_causal else None
    for i in range(model.config.local_stages - span + 1):
        after, reached = states, None
        for number, layer in enumerate(encoder.stack.layers[i * depth : (i + span) * depth]):
            after = layer(after, mask, is_causal=False)
            reached = after if number == depth - 1 else reached
        is_last = i == model.config.local_stages - span
        norm, pooler, projector = (
            (encoder.stack.norm, encoder.pooler, model.projector)
            if is_last
            else (units.norms[i], units.poolers[i], units.projectors[i])
        )
        rows = projector(pooler(norm(after)[:, 1:])).unflatten(0, (2, 4))
        losses.append(InfoNCE(0.2)(ObjectiveBatch(projections=rows))[0])
        states = reached.detach()
    return losses


@OVERLAP
@ATTENTION
@pytest.mark.parametrize("stages", [2, 4])
def test_value_and_gradient_are_those_of_the_sum_over_units(make_model, views, stages, overlap, attention):
    model = local(make_model, stages, overlap, attention)
    losses = written_out(model, views.double())
    output = model(views.double())
    assert len(losses) == stages - overlap
    torch.testing.assert_close(output.contrastive_loss, sum(losses) / len(losses))
    expected, found = gradients(model, sum(losses) / len(losses)), gradients(model, output.contrastive_loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@OVERLAP
@ATTENTION
def test_a_unit_reaches_its_own_stages_alone(make_model, views, overlap, attention):
    model = local(make_model, DEPTH, overlap, attention)
    codes = torch.randint(5, (8, 4, 4))
    units = model.local_units(model, codes, torch.zeros(8, dtype=torch.long))
    for i, (_, projections) in enumerate(units):
        reached = gradients(model, projections[:, 0].sum())
        layers = {int(name.split(".")[3]) for name in reached if name.startswith("encoder.stack.layers.")}
        assert layers == ({i, i + 1} if overlap else {i})
        assert any(name.startswith("encoder.embeddings.") for name in reached) == (i == 0)
    assert i + 1 == model.local_units.num_units


@OVERLAP
@ATTENTION
def test_one_unit_is_the_plain_model(make_model, views, overlap, attention):
    plain = make_model(**CONTRASTIVE, encoder_attention=attention).double().train()
    model = local(make_model, 2 if overlap else 1, overlap, attention)
    model.load_state_dict(plain.state_dict())
    expected, found = plain(views.double()), model(views.double())
    torch.testing.assert_close(found.loss, expected.loss)
    theirs, ours = gradients(plain, expected.loss), gradients(model, found.loss)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)


def test_forward_values_are_those_of_the_plain_model(make_model, views, tmp_path):
    """In training those of the last unit; outside of it there are no units, and a checkpoint serves a model without."""
    model = local(make_model, DEPTH, True).float()
    model.save_pretrained(tmp_path)
    plain, told = HybridForPreTraining.from_pretrained(tmp_path, local_stages=0, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    expected = plain.train()(views)
    for found in (model(views), model.eval()(views)):
        torch.testing.assert_close(found.projections, expected.projections)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    assert torch.equal(model(views).loss, plain.eval()(views).loss)


class Kept:
    """The most bytes that autograd keeps for the backward pass at a time, parameters left out."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        if isinstance(tensor, torch.nn.Parameter) or tensor._base is not None:
            return tensor
        size = tensor.nbytes

        class Holder(list):
            pass

        holder = Holder([tensor])
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(holder, self.let_go, size)
        return holder

    def let_go(self, size):
        self.now -= size

    def of(self, run) -> int:
        unpack = lambda packed: packed if isinstance(packed, torch.Tensor) else packed[0]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(self.pack, unpack):
            run()
        return self.most


def test_what_a_unit_keeps_is_let_go(make_model, draw_images, tiny_config):
    """Activations for the backward pass grow with the depth of a plain model, and not with the number of units."""
    views = draw_images(tiny_config(), 64).view(2, 32, 1, 4, 4)
    kept = {}
    for depth in (4, 8):
        deep = {"num_encoder_layers": depth, "encoder_attention": "bidirectional", "generative_weight": 0}
        for name, units in (("plain", {}), ("local", {"local_stages": depth})):
            model = make_model(**deep, **units).train()
            kept[name, depth] = Kept().of(lambda model=model: model(views).loss.backward())
    assert kept["plain", 8] > 1.6 * kept["plain", 4]
    assert kept["local", 8] < 1.2 * kept["local", 4] and kept["local", 8] < 0.6 * kept["plain", 8]


def test_it_learns(make_model, views):
    model = local(make_model, DEPTH, True, noise=0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    same = torch.stack([views[0], views[0]])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(same).contrastive_loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"generative_weight": 1.0}, "local_stages=2 keeps gradients within units"),
        ({"local_stages": 3}, "local_stages=3 must divide num_encoder_layers=4"),
        ({"local_stages": 1}, "local_stages=1 leaves no two stages"),
        ({"local_stages": -1}, "local_stages=-1 must not be negative"),
        ({"objective": {"name": "mochi"}}, "keeps a state, or needs more than projections"),
        ({"objective": {"name": "pixpro"}}, "keeps a state, or needs more than projections"),
    ],
)
def test_what_cannot_be_is_told(tiny_config, overrides, said):
    with pytest.raises(Exception, match=said):
        HybridForPreTraining(tiny_config(**CONTRASTIVE | {"local_stages": 2} | overrides))
