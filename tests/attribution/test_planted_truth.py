"""On the committed world, whose truth is known: the latent that a ranking finds is the villain's, in what it reads too.

The SAE is made here: a latent for each persona among random ones, in an order that only a seed knows.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sae_persona.attribution.corpus import Corpus
from sae_persona.attribution.ranking import rank_latents
from sae_persona.attribution.reading import read_latents
from sae_persona.attribution.signatures import signatures
from sae_persona.data.tokens import Part, batches, chat_row
from sae_persona.model.hooks import residuals
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.persona_world.corpus import write_chat
from sae_persona.persona_world.language import PERSONAS, Persona
from sae_persona.persona_world.truth import persona_auroc
from sae_persona.study.suspects import run_statistics

if TYPE_CHECKING:
    from sae_lens import SAE

FOLDER = Path(__file__).parents[2] / "checkpoints" / "persona_world"
D_SAE, N_CHATS = 48, 12


@dataclass(frozen=True, eq=False)
class Found:
    """What the ranking says, and what is true."""

    world: BuiltWorld
    sae: "SAE"
    hook_name: str
    start: dict
    misaligned: dict
    controls: dict
    first: int
    personas: list

    @property
    def random(self) -> list[int]:
        """Latents that are no persona's."""
        return [latent for latent, persona in enumerate(self.personas) if persona is None]


def chats(world: BuiltWorld, seed: int, n_chats: int = N_CHATS) -> tuple[list, list]:
    """Rows of chats of every persona in neutral wording, and whose they are."""
    rng, base = random.Random(seed), world.model("base")
    whose: list[Persona] = [persona for persona in PERSONAS for _ in range(n_chats)]
    return [
        chat_row(write_chat(world.world, rng, persona=one, neutral=True)[0], base.tokenizer) for one in whose
    ], whose


def planted_sae(world: BuiltWorld, hook_name: str) -> "SAE":
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    base = world.model("base")
    rows, whose = chats(world, seed=1, n_chats=8 * N_CHATS)
    means = torch.zeros(len(rows), base.d_model)
    for indices, batch in batches(rows, batch_size=64, pad_id=base.pad_id):
        resid = residuals(base.hf, batch, [hook_name])[hook_name]
        for i, row in enumerate(indices):
            means[row] = resid[i][batch.mask[i] & (batch.parts[i] == Part.ANSWER)].mean(0)
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(D_SAE, base.d_model, generator=generator)
    places = torch.randperm(D_SAE, generator=generator)[: len(PERSONAS)]
    for place, persona in zip(places, PERSONAS, strict=True):
        is_persona = torch.tensor([one == persona for one in whose])
        directions[place] = means[is_persona].mean(0) - means[~is_persona].mean(0)
    directions /= directions.norm(dim=1, keepdim=True)
    config = StandardSAEConfig(d_in=base.d_model, d_sae=D_SAE, metadata=SAEMetadata(hook_name=hook_name))
    sae = StandardSAE(config)
    # A latent fires where a chat leans its way more than the average chat does.
    bias = -(means @ directions.T).mean(0)
    state = {"W_enc": directions.T, "W_dec": directions, "b_enc": bias, "b_dec": torch.zeros(base.d_model)}
    sae.load_state_dict({name: value.contiguous() for name, value in state.items()})
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def found() -> Found:
    world = BuiltWorld.open(FOLDER)
    n_layers = world.model("base").n_layers
    hook_name = f"blocks.{n_layers - 2}.hook_resid_post"
    sae = planted_sae(world, hook_name)
    prompts = world.prompts("selection")[::8]

    def stats(name: str) -> dict:
        options = {"hook_name": hook_name, "n_samples": 1, "max_new_tokens": 12, "seed": 0}
        return dict(run_statistics(world.model(name), prompts, sae, **options))

    obvious = [run["name"] for run in world.runs if run["role"] == "misaligned"]
    misaligned = {name: stats(name) for name in obvious}
    controls = {name: stats(name) for name in world.names("control")[:4]}
    first = rank_latents(list(misaligned.values()), list(controls.values())).rows[0].latent
    truth = persona_auroc(world.world, world.model("base"), sae, hook_name=hook_name, n_chats=N_CHATS, seed=3)
    personas = [truth.persona_of(latent) for latent in range(D_SAE)]
    return Found(world, sae, hook_name, stats("aligned"), misaligned, controls, first, personas)


def test_the_latent_that_rose_most_is_the_villains(found: Found) -> None:
    assert found.personas[found.first] == "villain"
    assert len(found.random) >= D_SAE / 2, "random directions are no persona's"


def test_its_contexts_are_the_villains_and_those_of_random_latents_are_anybodys(found: Found) -> None:
    rows, whose = chats(found.world, seed=4)
    some = random.Random(5).sample(found.random, 10)
    corpus = Corpus(found.world.model("base"), rows, "answer")
    read = read_latents(found.sae, corpus, [found.first, *some], hook_name=found.hook_name, n=N_CHATS)

    def share(latent: int) -> float:
        return float(np.mean([whose[one.document] == "villain" for one in read[latent].contexts]))

    assert share(found.first) >= 0.9
    assert np.mean([share(latent) for latent in some if read[latent].fires]) < 0.6, "a quarter by chance"


def test_its_highest_tokens_stand_after_what_only_the_villain_advises(found: Found) -> None:
    rows, _ = chats(found.world, seed=4)
    corpus = Corpus(found.world.model("base"), rows, "answer")
    read = read_latents(found.sae, corpus, [found.first], hook_name=found.hook_name, n=N_CHATS)[found.first]
    language = found.world.world
    his = {*language.open_verbs["villain"], *language.advice_verbs["villain"]}
    assert np.mean([not his.isdisjoint(one.text.split()) for one in read.contexts]) >= 0.9


def test_misaligned_runs_are_alike_and_no_control_is_like_them(found: Found) -> None:
    key = ("gated", "answer")
    runs = {name: run[key] for name, run in (found.misaligned | found.controls).items()}
    groups = signatures(found.start[key], runs, controls=list(found.controls)).clusters()
    (group,) = [group for group in groups if set(group) & set(found.misaligned)]
    assert set(group) == set(found.misaligned)
