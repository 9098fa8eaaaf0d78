"""A decoder that is told a latent: exact given any, an estimate without, and never called p(image)."""

import math

import pytest
import torch
from other_processes import run_group
from test_likelihood import all_codes

from modeling_hybrid import HybridForImageGeneration, HybridForOutOfDistributionDetection, HybridForPreTraining
from modeling_hybrid.condition import MIN_LOG_VARIANCE, log_prior


LATENT = {"decoder_condition": "latent", "objective": {"name": "cmim"}}
SMALL = {"image_size": 2, "patch_size": 1, "num_levels": 3, "projection_dim": 2}


def build(make_model, cls=HybridForPreTraining, **overrides):
    return make_model(cls, noise=0.3, **LATENT, **overrides).double()


@torch.no_grad()
def test_exact_given_any_latent(make_model):
    model = build(make_model, **SMALL)
    codes = all_codes(model.config)
    found = []
    for latent in (torch.zeros(2), torch.tensor([3.0, -1]), model.posterior(codes=codes[7:8]).mean[0]):
        found.append(model.log_likelihood(codes=codes, features=latent.double().expand(len(codes), 2)))
        assert found[-1].exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert (found[0] - found[1]).abs().max() > 0.05


@torch.no_grad()
def test_the_estimate_is_of_what_the_prior_and_the_decoder_say(make_model):
    """Against a fine sum over latents of two numbers; with few samples it is too small on average."""
    model = build(make_model, **SMALL)
    # Latents of images are about those of the prior, and tell little, so that few samples are enough.
    model.latent.statistics.weight.mul_(0.2)
    model.condition.projection.weight.mul_(0.1)
    model.latent.statistics.bias.zero_()
    codes = all_codes(model.config)[::9]
    axis = torch.linspace(-6, 6, 61, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    weights = log_prior(grid) + 2 * math.log(axis[1] - axis[0])
    assert weights.exp().sum().item() == pytest.approx(1, abs=1e-3)
    given = [model.log_likelihood(codes=one.expand(len(grid), -1, -1), features=grid) for one in codes]
    exact = (torch.stack(given) + weights).logsumexp(dim=1)
    torch.manual_seed(0)
    found = model.estimated_log_likelihood(codes=codes, num_samples=3000)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    few = torch.stack([model.estimated_log_likelihood(codes=codes, num_samples=1) for _ in range(300)]).mean(0)
    assert (few < exact).all() and (few < found).all()


@torch.no_grad()
def test_its_likelihood_is_conditional_and_says_so(make_model, draw_images, tmp_path):
    model = build(make_model)
    x = draw_images(model.config, dtype=torch.double)
    latents = model.posterior(x).mean
    assert not model.config.has_likelihood and model.log_likelihood(x, features=latents).shape == (3,)
    for use in (model.log_likelihood, lambda x: HybridForImageGeneration.forward(model, x)):
        with pytest.raises(ValueError, match=r"has p\(image \| latent\) alone .*no exact p\(image\)"):
            use(x)
    for use in (model.bits_per_dim, model.information, model.information_map):
        with pytest.raises(ValueError, match=r"no exact p\(image\)"):
            use(x, features=latents)
    with pytest.raises(ValueError, match=r"no exact p\(image\)"):
        model.log_likelihood(x, features=[latents[0], None, latents[2]])
    with pytest.raises(ValueError, match=r"features has shape \(3, 16\), expected \(3, 8\): one row, the latent"):
        model.log_likelihood(x, features=model.encoder(x).pooler_output)
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        model.estimated_log_likelihood(x, num_samples=0)
    with pytest.raises(ValueError, match="has no latents"):
        make_model().posterior(draw_images(model.config))
    # The detector knows features alone.
    model.save_pretrained(tmp_path)
    detector = HybridForOutOfDistributionDetection.from_pretrained(tmp_path, dtype=torch.double)
    assert detector.fit(x.repeat(3, 1, 1, 1), x)(x).likelihood_scores is None


@torch.no_grad()
def test_images_are_drawn_from_the_prior_and_from_latents(make_model, draw_images):
    model = build(make_model, HybridForImageGeneration)
    x = draw_images(model.config, dtype=torch.double)

    def seeded():
        return torch.Generator().manual_seed(0)

    latents = model.sample_features(4, generator=(generator := seeded()))
    assert latents.shape == (4, 8)
    assert torch.equal(
        model.generate(batch_size=4, generator=seeded()), model.generate(features=latents, generator=generator)
    )
    varied = model.features_to_tell(x, generator := seeded())
    assert torch.equal(
        model.generate(pixel_values=x, generator=seeded()), model.generate(features=varied, generator=generator)
    )
    completed = model.generate(pixel_values=x, num_given_rows=2, features=model.posterior(x).mean)
    torch.testing.assert_close(model.codes_to_pixels(completed)[:, :, :2].double(), x[:, :, :2])
    with pytest.raises(ValueError, match="completes images of a known latent only"):
        model.generate(pixel_values=x, num_given_rows=2)
    with pytest.raises(ValueError, match="guidance_scale=2"):
        model.generate(features=latents, guidance_scale=2.0)
    # A density of the latents that images have, in place of the prior.
    model.fit_feature_density(draw_images(model.config, 20, dtype=torch.double), num_components=2)
    assert not torch.equal(model.sample_features(4, generator=seeded()), latents)
    assert model.decoder_features(x).shape == (3, 16)


def test_the_loss_is_that_of_a_mim_and_the_contrast(make_model, draw_images):
    """-log p(x | z) - (log p(z) + log q(z | x)) / 2, per code, and cMIM's loss of the very codes that are told."""
    model = build(make_model, contrastive_weight=0.7).train()
    x = draw_images(model.config, 5, dtype=torch.double)[None]
    torch.manual_seed(3)
    output = model(x)
    torch.manual_seed(3)
    posterior = model.posterior(x[0])
    latents = posterior.rsample()
    nats = -model.log_likelihood(x[0], features=latents)
    torch.testing.assert_close(output.nll[0], nats.detach())
    expected = (nats - (log_prior(latents) + posterior.log_prob(latents)) / 2).mean() / model.config.num_dims
    torch.testing.assert_close(output.generative_loss, expected)
    rows = torch.nn.functional.normalize(latents, dim=-1)
    torch.testing.assert_close(output.projections[0], rows)
    torch.testing.assert_close(
        output.contrastive_loss, model.objective(model.objective.Batch(projections=rows[None]))[0]
    )
    torch.testing.assert_close(output.loss, output.generative_loss + 0.7 * output.contrastive_loss)
    # Both halves reach encoder and code.
    for loss in (output.generative_loss, output.contrastive_loss):
        for parameter in (model.latent.statistics.weight, model.encoder.embeddings.code_embedding.weight):
            assert torch.autograd.grad(loss, parameter, retain_graph=True)[0].abs().max() > 0
    # The variance has a floor.
    with torch.no_grad():
        model.latent.statistics.bias.fill_(-1e4)
        assert (model.posterior(x[0]).variance >= math.exp(MIN_LOG_VARIANCE) * (1 - 1e-6)).all()


def one_of_many(rank: int, num_processes: int, config, weights, images, path) -> None:
    model = HybridForPreTraining(config).double().train()
    model.load_state_dict(weights)
    size = len(images) // num_processes
    loss, found = step(model, images[rank * size : (rank + 1) * size])
    for value in (loss, *found.values()):
        torch.distributed.all_reduce(value)
    if rank == 0:
        torch.save({name: value / num_processes for name, value in (found | {"loss": loss}).items()}, path)


def step(model, images) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and its gradients, where the latents are the means: what is drawn differs between processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.Independent, "rsample", lambda self: self.mean)
        loss = model(images[None]).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_many_processes_equal_one(make_model, draw_images, num_processes, tmp_path):
    model = build(make_model).train()
    images, path = draw_images(model.config, 8, dtype=torch.double), tmp_path / "found.pt"
    run_group(one_of_many, num_processes, tmp_path, num_processes, model.config, model.state_dict(), images, path)
    loss, gradients = step(model, images)
    found = torch.load(path)
    torch.testing.assert_close(found.pop("loss"), loss)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": {"name": "mochi"}}, "does not work on projections of the views alone"),
        ({"objective": {"name": "simctg"}}, "set decoder_condition='none'"),
    ],
)
def test_objectives_that_need_more_than_the_codes(tiny_config, fields, message):
    with pytest.raises(ValueError, match=message):
        HybridForPreTraining(tiny_config(decoder_condition="latent", **fields))


def test_features_of_a_decoder_that_is_told_nothing(tiny_config):
    with pytest.raises(Exception, match="reads a decoder that is told nothing"):
        tiny_config(features_from="decoder", **LATENT)


# Runs here and, as text, in a process without the package.
USE = """
import torch
from transformers import AutoModelForCausalLM, AutoModelForPreTraining


def outputs_of(folder, **kwargs):
    torch.manual_seed(0)
    x = torch.randint(5, (4, 1, 4, 4)) / 2 - 1
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    with torch.no_grad():
        found = {
            "given": model.log_likelihood(x, features=model.posterior(x).mean),
            "estimate": model.estimated_log_likelihood(x, num_samples=3),
            "drawn": model.generate(batch_size=2),
            "variations": model.generate(pixel_values=x),
        }
    loss = AutoModelForPreTraining.from_pretrained(folder, **kwargs).train()(x[None]).loss.detach()
    return found | {"loss": loss}
"""


def test_a_checkpoint_does_all_of_it_with_its_own_code(make_model, run_python, tmp_path):
    make_model(HybridForPreTraining, **LATENT).save_pretrained(tmp_path)
    scope = {}
    exec(USE, scope)
    torch.save(scope["outputs_of"](tmp_path), tmp_path / "expected.pt")
    check = f"""
expected = torch.load({str(tmp_path / "expected.pt")!r})
for name, value in outputs_of({str(tmp_path)!r}, trust_remote_code=True).items():
    torch.testing.assert_close(value, expected[name], msg=name)
print("all agree")
"""
    assert "all agree" in run_python(USE + check, package=False)
