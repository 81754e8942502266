"""The words beside a latent are those of the logit lens."""

from drawn_sae import drawn

from sae_persona.attribution.lens import logit_lens
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.language import World
from sae_persona.persona_world.models import SIZES, build_tokenizer, new_model
from sae_persona.study.summary import top_tokens


def test_tokens_are_named_as_the_logit_lens_orders_them(world: World) -> None:
    hf = new_model(world, SIZES["tiny"], seed=0).eval().requires_grad_(False)
    hf.model.norm.weight[:16] = 3  # the lens sees through the norm's gain
    model = LoadedModel("tiny", hf, build_tokenizer(world))
    sae = drawn("topk", d_in=32, d_sae=6, k=2)
    names = top_tokens(model, sae, [1, 4], n=5)
    assert list(names) == ["1", "4"]
    for latent in (1, 4):
        ids = [token.id for token in logit_lens(model, sae, latent, n=5).promoted]
        assert names[str(latent)] == model.tokenizer.convert_ids_to_tokens(ids)
