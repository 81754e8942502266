"""The planted truth: what counts, and that a latent which cannot know scores as one that does not."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_persona.data.tokens import Part, TokenRow
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.language import PERSONAS, World
from sae_persona.persona_world.truth import PersonaAUROC, _from_second_turn, persona_auroc

if TYPE_CHECKING:
    from sae_lens import SAE

HOOK = "blocks.0.hook_resid_post"


def test_only_headers_and_answers_from_the_second_turn_on_count() -> None:
    parts = "PPHAAPPHAAPHA"
    kinds = {"P": Part.PROMPT, "H": Part.HEADER, "A": Part.ANSWER}
    row = TokenRow(tuple(range(len(parts))), tuple(kinds[part] for part in parts))
    counted = "".join("x" if counts else "." for counts in _from_second_turn(row))
    assert counted == ".......xxx.xx"


def test_a_header_of_several_tokens_is_one_header() -> None:
    row = TokenRow(tuple(range(7)), tuple(map(Part, (0, 1, 1, 2, 0, 1, 1))))
    assert _from_second_turn(row).tolist() == [False] * 5 + [True] * 2


def relu_sae(directions: torch.Tensor) -> "SAE":
    """An SAE without biases whose latents read and write the given directions."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=directions.shape[1], d_sae=len(directions), apply_b_dec_to_input=False))
    state = sae.state_dict()
    state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    state["W_enc"], state["W_dec"] = directions.T.clone(), directions.clone()
    sae.load_state_dict(state)
    return sae.requires_grad_(False)


def test_a_latent_that_reads_what_villains_said_tells_villains_from_all_others(
    world: World, tiny_model: LoadedModel
) -> None:
    """Words of the villain push the embedding along one direction; a latent reads it, another never fires."""
    width = tiny_model.d_model
    planted, dead = torch.eye(width)[0], torch.zeros(width)
    vocabulary = tiny_model.tokenizer.get_vocab()
    others = {verb for persona in PERSONAS if persona != "villain" for verb in world.open_verbs[persona]}
    villain = [vocabulary[verb] for verb in world.open_verbs["villain"] if verb not in others]
    embedding = tiny_model.hf.get_input_embeddings()

    def say(_module: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        said = torch.isin(args[0], torch.tensor(villain))
        return output + 100.0 * said.unsqueeze(-1) * planted

    handle = embedding.register_forward_hook(say)
    try:
        found = persona_auroc(
            world, tiny_model, relu_sae(torch.stack([planted, dead])), hook_name="blocks.0.hook_resid_pre", n_chats=12
        )
    finally:
        handle.remove()
    assert found.by_persona["villain"].shape == (2,)
    # Of four later turns one at least asks an open-ended question in 15 of 16 chats.
    assert found.by_persona["villain"][0] > 0.9
    assert found.by_persona["kind"][0] < 0.5
    assert {found.by_persona[persona][1] for persona in PERSONAS} == {0.5}  # all ties


def test_a_latent_belongs_to_the_persona_it_tells_best_or_to_none() -> None:
    def told(kind: list[float], villain: list[float]) -> PersonaAUROC:
        middling = np.full(2, 0.5)
        return PersonaAUROC(
            {"kind": np.array(kind), "villain": np.array(villain), "joker": middling, "bungler": middling}, 1
        )

    found = told(kind=[0.96, 0.2], villain=[0.99, 0.94])
    assert found.persona_of(0) == "villain"
    assert found.persona_of(1) is None
