"""Streamed statistics against the dense ones."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import torch

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import ArtifactError, DataError
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae import chunks, statistics
from sae_persona.sae.chunks import Dense
from sae_persona.sae.encode import Selection, readings
from sae_persona.sae.statistics import LatentStats, latent_stats, latent_stats_of_saes
from sae_persona.sae.sums import Sums

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.1.hook_resid_post"
PARTS = (Part.PROMPT,) * 3 + (Part.HEADER,) * 2 + (Part.ANSWER,) * 6
ROWS = [TokenRow(tuple(range(5 + 3 * i, 12 + 3 * i + i % 4)), PARTS[: 7 + i % 4]) for i in range(8)]
QUESTIONS = ["b", "a", "b", "c", "a", "a", "b", "c"]
FIELDS = ("mean", "variance", "frequency", "maximum", "per_question", "resid_mean")


def stats_of(sae: "TopKSAE", model: LoadedModel, **options: object) -> dict[tuple[str, str], LatentStats]:
    return latent_stats(sae, model, ROWS, questions=QUESTIONS, hook_name=HOOK, **options)  # pyright: ignore


def test_several_saes_in_one_pass_give_what_each_gives_alone(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    from sae_lens import TopKSAE, TopKSAEConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = TopKSAE(TopKSAEConfig(d_in=sae.cfg.d_in, d_sae=16, k=2)).requires_grad_(False)
    saes = {"one": sae, "other": other}
    found = latent_stats_of_saes(saes, tiny_model, ROWS, questions=QUESTIONS, hook_name=HOOK)
    for name, each in saes.items():
        alone = stats_of(each, tiny_model)
        assert found[name].keys() == alone.keys()
        for key, stats in alone.items():
            assert stats.sae == found[name][key].sae
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(found[name][key], field), getattr(stats, field))
    assert found["one"]["gated", "answer"].mean.shape != found["other"]["gated", "answer"].mean.shape


@pytest.mark.parametrize("tokens", get_args(Selection))
@pytest.mark.parametrize("reading", ["gated", "pre_activation"])
def test_one_pass_gives_what_all_activations_at_once_give(
    sae: "TopKSAE", tiny_model: LoadedModel, tokens: str, reading: str
) -> None:
    found = stats_of(sae, tiny_model, selections=get_args(Selection), batch_size=3, spread_by_question=True)
    found = found[reading, tokens]
    resid, owner = [], []
    for row, question in zip(ROWS, QUESTIONS, strict=True):
        alone = residuals(tiny_model.hf, pad_rows([row], pad_id=0), [HOOK])[HOOK][0]
        use = torch.tensor([part.name.lower() == tokens for part in row.parts])
        use[0] = False
        if tokens == "last":
            use[-1] = True
        resid.append(alone[use])
        owner += [question] * int(use.sum())
    x = torch.cat(resid)
    a = readings(sae, x)[reading].double().numpy()  # pyright: ignore
    assert (found.reading, found.tokens, found.n_tokens) == (reading, tokens, len(a))
    close = {"rtol": 1e-4, "atol": 1e-6}  # float32 attention over padded rows
    np.testing.assert_allclose(found.mean, a.mean(0), **close)
    np.testing.assert_allclose(found.variance, a.var(0), **close)
    np.testing.assert_allclose(found.frequency, (a > 0).mean(0))
    np.testing.assert_allclose(found.maximum, a.max(0), **close)
    np.testing.assert_allclose(found.resid_mean, x.double().mean(0), **close)
    assert found.question_ids == ("b", "a", "c")
    for i, question in enumerate(found.question_ids):
        mine = np.array(owner) == question
        assert found.tokens_per_question[i] == mine.sum()
        np.testing.assert_allclose(found.per_question[i], a[mine].mean(0), **close)
        np.testing.assert_allclose(found.variance_per_question[i], a[mine].var(0), **close)
        np.testing.assert_allclose(found.frequency_per_question[i], (a[mine] > 0).mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.maximum_per_question[i], a[mine].max(0), **close)


@pytest.mark.parametrize(("reading", "frequency"), [("gated", [2 / 3, 1 / 3]), ("pre_activation", [0, 1 / 3])])
def test_a_latent_that_is_let_through_below_zero_fires(reading: str, frequency: list[float]) -> None:
    sums = Sums(1, 2, torch.device("cpu"), by_question=False)
    values = torch.tensor([[-1.0, 0], [0, 2], [-3, 0]])  # as Absolute TopK does
    sums.add(Dense(reading, slice(0, 2), values), [(0, slice(0, 3))])  # pyright: ignore
    np.testing.assert_allclose(sums.spread(torch.tensor([3])).frequency, frequency)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_neither_batches_nor_blocks_change_the_numbers(
    sae: "TopKSAE", tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    whole = stats_of(sae, tiny_model)
    monkeypatch.setattr(statistics, "N_TOKENS", 5)
    monkeypatch.setattr(chunks, "_N_LATENTS", 5)
    for key, cut in stats_of(sae, tiny_model, batch_size=batch_size).items():
        for name in FIELDS:
            np.testing.assert_allclose(getattr(cut, name), getattr(whole[key], name), rtol=1e-4, atol=1e-6)


def test_questions_weigh_by_their_tokens_in_the_mean(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    stats = stats_of(sae, tiny_model)["gated", "answer"]
    np.testing.assert_allclose(stats.tokens_per_question @ stats.per_question / stats.n_tokens, stats.mean, rtol=1e-6)


def test_a_latent_that_is_large_and_hardly_varies_keeps_its_variance() -> None:
    values = 1000 + torch.tensor([[0.01], [0.03], [-0.02], [0.0]]) * 10  # in float32 its squares are 0.06 apart
    sums = Sums(1, 1, torch.device("cpu"), by_question=False)
    for block in values.split(2):
        sums.add(Dense("gated", slice(0, 1), block), [(0, slice(0, 2))])
    expected = values.double().var(0, correction=0)
    np.testing.assert_allclose(sums.spread(torch.tensor([4])).variance, expected, rtol=1e-4)


def test_other_spreads_of_questions_are_kept_only_when_asked_for(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    stats = stats_of(sae, tiny_model)["gated", "answer"]
    assert stats.variance_per_question is stats.frequency_per_question is stats.maximum_per_question is None


def test_by_default_headers_and_answers_are_read_in_both_ways(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    found = stats_of(sae, tiny_model)
    assert found.keys() == {(r, t) for r in ("gated", "pre_activation") for t in ("header", "answer")}
    assert (found["gated", "answer"].mean >= 0).all()
    assert (found["pre_activation", "answer"].mean < 0).any()


def test_only_the_first_token_is_dropped_and_outliers_if_a_limit_is_given(
    sae: "TopKSAE", tiny_model: LoadedModel
) -> None:
    found = stats_of(sae, tiny_model, selections=("prompt",))["gated", "prompt"]
    assert found.n_tokens == 8 * 2
    assert stats_of(sae, tiny_model, selections=("prompt",), drop_first=0)["gated", "prompt"].n_tokens == 8 * 3
    assert stats_of(sae, tiny_model, selections=("prompt",), max_norm=1e9)["gated", "prompt"].n_tokens == 8 * 2


def test_questions_without_such_a_token_are_left_out(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    rows = [ROWS[0], TokenRow(ROWS[1].ids[:4], ROWS[1].parts[:4])]
    found = latent_stats(sae, tiny_model, rows, questions=["a", "b"], hook_name=HOOK)
    assert found["gated", "header"].question_ids == ("a", "b")
    assert found["gated", "answer"].question_ids == ("a",)
    assert found["gated", "answer"].per_question.shape == (1, 12)


def test_what_cannot_be_measured_is_refused(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="8 rows and 7 questions"):
        latent_stats(sae, tiny_model, ROWS, questions=QUESTIONS[1:], hook_name=HOOK)
    with pytest.raises(DataError, match=r"counted answer token.*leave 'answer' out"):
        latent_stats(sae, tiny_model, [TokenRow((5, 6), PARTS[2:4])], questions=["a"], hook_name=HOOK)


@pytest.mark.parametrize("detail", [False, True])
def test_statistics_come_back_from_their_file(
    sae: "TopKSAE", tiny_model: LoadedModel, tmp_path: Path, detail: bool
) -> None:
    stats = stats_of(sae, tiny_model, spread_by_question=detail)["pre_activation", "answer"]
    stats.save(tmp_path / "stats.safetensors")
    loaded = LatentStats.load(tmp_path / "stats.safetensors")
    assert (loaded.variance_per_question is None) is not detail
    for name in (*FIELDS, *("variance_per_question", "maximum_per_question") * detail):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(stats, name))
    for name in ("reading", "tokens", "n_tokens", "question_ids", "n_questions"):
        assert getattr(loaded, name) == getattr(stats, name)
    (tmp_path / "stats.safetensors").write_bytes(b"nothing")
    for path in ("stats.safetensors", "none.safetensors"):
        with pytest.raises(ArtifactError, match="no latent statistics"):
            LatentStats.load(tmp_path / path)
