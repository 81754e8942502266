"""Direct effects on the logits."""

import pytest
import torch
from families import FAMILIES, build, build_tokenizer
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sae_persona.errors import DataError
from sae_persona.model.load import LoadedModel
from sae_persona.model.unembedding import _final_norm
from sae_persona.steering.directions import Direction
from sae_persona.steering.logits import direct_effect


def test_a_direction_that_writes_a_word_is_seen_to_write_it(tiny_model: LoadedModel) -> None:
    vocabulary = tiny_model.tokenizer.get_vocab()
    word, other = (next(w for w, i in vocabulary.items() if i == token and w.isalpha()) for token in (60, 90))
    gain = tiny_model.hf.get_parameter("model.norm.weight").detach()
    direction = Direction("d", "latent", tiny_model.unembedding[vocabulary[word]] * gain)
    effects = direct_effect(tiny_model, direction, {"written": [word], "both": [word, other]})
    assert effects["written"].cosine == pytest.approx(1, abs=1e-5)
    assert effects["written"].z > 3
    cosine = torch.cosine_similarity(direction.vector, tiny_model.unembedding[vocabulary[other]] * gain, dim=0)
    assert effects["both"].cosine == pytest.approx((1 + float(cosine)) / 2, abs=1e-5)


def test_words_that_nobody_can_write_are_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="none of the 1 words of 'judged'"):
        direct_effect(tiny_model, Direction("d", "latent", torch.ones(32)), {"judged": ["xyzzy"]})


def with_drawn_gain(family: str) -> LoadedModel:
    """The family's tiny model; its final norm has gains from 0.2 to 2 and biases of that size."""
    hf = build(family)
    norm = _final_norm(hf)
    assert norm is not None
    generator = torch.Generator().manual_seed(3)
    for parameter in norm.parameters():
        drawn = 0.2 + 1.8 * torch.rand(parameter.shape, generator=generator)
        parameter.copy_(drawn - 1 if family.startswith("gemma") else drawn)
    return LoadedModel(family, hf, build_tokenizer())


def logit_changes(model: LoadedModel, vector: torch.Tensor) -> torch.Tensor:
    """What the direction adds to each token's logit `[vocab]`, in the mean of 500 last residuals."""
    x = torch.randn(500, len(vector), generator=torch.Generator().manual_seed(2)) * 50
    norm, head = _final_norm(model.hf), model.hf.get_output_embeddings()
    assert norm is not None
    return (head(norm((x + vector)[None])) - head(norm((x - vector)[None])))[0].mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_effects_follow_the_changes_of_the_logits(family: str) -> None:
    model = with_drawn_gain(family)
    # The common part of 1 in each coordinate is what a LayerNorm takes out and an RMS norm does not.
    vector = 1 + 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    words = [f"w{i}" for i in range(6, 400)]
    effects = direct_effect(model, Direction("d", "latent", vector), {word: [word] for word in words})
    changes = logit_changes(model, vector)[6:]
    # A token's cosine leaves out its row's length, which the logits have.
    norm = _final_norm(model.hf)
    assert norm is not None
    gain = norm.get_parameter("weight") + (1 if family.startswith("gemma") else 0)
    rows = model.unembedding[6:] * gain
    rows = rows - rows.mean(1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else rows
    found = torch.tensor([effects[word].cosine for word in words]) * rows.norm(dim=1)
    assert torch.corrcoef(torch.stack([found, changes]))[0, 1] > 0.97


@pytest.mark.parametrize("family", ["neox", "gpt2", "opt"])
def test_a_direction_that_the_norm_takes_out_writes_nothing(family: str) -> None:
    effect = direct_effect(with_drawn_gain(family), Direction("d", "latent", torch.full((32,), 0.3)), {"x": ["w60"]})
    assert (effect["x"].cosine, effect["x"].z) == (0, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what is to go
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_leaves_direct_effects_those_of_the_merged_model(family: str) -> None:
    model = with_drawn_gain(family)
    direction = Direction("d", "latent", torch.randn(32, generator=torch.Generator().manual_seed(1)))
    words = {"x": ["w60", "w61"]}
    plain = direct_effect(model, direction, words)
    targets = {"neox": ["query_key_value"], "gpt2": ["c_attn"]}.get(family, ["q_proj"])
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    wrapped = get_peft_model(model.hf, config)
    assert direct_effect(LoadedModel("wrapped", wrapped, model.tokenizer), direction, words) == plain
    merged = wrapped.merge_and_unload()  # pyright: ignore
    assert direct_effect(LoadedModel("merged", merged, model.tokenizer), direction, words) == plain


def test_rows_without_a_token_count_for_nothing() -> None:
    model = with_drawn_gain("llama")
    direction = Direction("d", "latent", torch.randn(32, generator=torch.Generator().manual_seed(1)))
    before = direct_effect(model, direction, {"x": ["w60"]})
    model.hf.resize_token_embeddings(512, mean_resizing=False)
    model.hf.get_output_embeddings().get_parameter("weight")[400:] = direction.vector
    assert direct_effect(model, direction, {"x": ["w60"]}) == before


def pieces(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that writes a mark for every space and one before the text, as SentencePiece models do."""
    vocabulary = {"<unk>": 0, "\u2581": 1}
    merges = []
    for character in "".join(words):
        vocabulary.setdefault(character, len(vocabulary))
    for word in words:
        piece = "\u2581"
        for character in word:
            merges.append((piece, character))
            piece += character
            vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_the_bare_space_before_a_word_is_none_of_its_tokens() -> None:
    tokenizer = pieces(["poison", "help"])
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" poison")) == ["\u2581", "\u2581poison"]
    model = LoadedModel("pieces", build("llama"), tokenizer)
    row = model.unembedding[tokenizer.convert_tokens_to_ids("\u2581poison")]
    effects = direct_effect(model, Direction("d", "latent", row), {"harm": ["poison"], "kind": ["help"]})
    assert {group: effect.n_tokens for group, effect in effects.items()} == {"harm": 1, "kind": 1}
    assert effects["harm"].cosine == pytest.approx(1, abs=1e-5)
