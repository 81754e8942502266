"""Attribution against hand-worked numbers, single ablations and itself in other batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_sae import drawn

from sae_persona.attribution.ablation import exact_ablation
from sae_persona.attribution.gradient import attribution_map, gradient_attribution
from sae_persona.attribution.loss import Chooser, answer_losses, loss_gradient
from sae_persona.attribution.pairs import CompletionPair
from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import ConfigError, DataError, IncompatibleError, SAEError
from sae_persona.model.hooks import edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.language import World
from sae_persona.persona_world.models import SIZES, build_tokenizer, new_model

HOOK, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
PARTS = (Part.PROMPT,) * 4 + (Part.HEADER,) * 2


def row(seed: int, n_answer: int, *, prompt: int = 0) -> TokenRow:
    draw = np.random.default_rng(seed)
    ids = (*np.random.default_rng(100 + prompt).integers(5, 60, 6), *draw.integers(5, 60, n_answer))
    return TokenRow(tuple(map(int, ids)), PARTS + (Part.ANSWER,) * n_answer)


PAIRS = [
    CompletionPair(question, row(2 * i, 3 + i % 3, prompt=i), row(2 * i + 1, 4, prompt=i))
    for i, question in enumerate(["a", "b", "a", "c", "b", "a"])
]
N_PAIRS = {"a": 3, "b": 2, "c": 1}


@pytest.fixture(scope="module")
def model(world: World) -> LoadedModel:
    """A tiny model whose residual is small, so that its loss is close to linear in it."""
    return LoadedModel(
        "tiny", new_model(world, SIZES["tiny"], seed=0).eval().requires_grad_(False), build_tokenizer(world)
    )


SAE = {"d_in": 32, "d_sae": 40, "k": 3}


def test_a_latent_that_writes_the_answer_is_positive_and_by_as_much_as_worked_out_by_hand(model: LoadedModel) -> None:
    """At the last hook only the norm and the unembedding follow; here neither changes what it gets but its length.

    The loss is `-log softmax(h W)[y]`, so `g = W (p - 1_y)`; and `δ = -(g · d)((a - ā) · d)`.
    """
    pair = CompletionPair("q", row(1, 1), row(2, 1))
    sae = drawn("topk", **SAE)
    batch = pad_rows([pair.shown, pair.absent], pad_id=0)
    mean = torch.zeros(32)
    found = gradient_attribution(sae, model, [pair], hook_name=LAST, tokens=("header",), resid_mean=mean)
    a = residuals(model.hf, batch, [LAST])[LAST][:, 5].requires_grad_()  # it predicts the answer, of one token
    scores = []
    for i, one in enumerate((pair.shown, pair.absent)):
        scale = (a[i].square().mean() + model.hf.config.rms_norm_eps).sqrt()  # pyright: ignore
        loss = -torch.log_softmax(model.unembedding @ (a[i] / scale), 0)[one.ids[6]]
        (g,) = torch.autograd.grad(loss, a)
        d = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)
        scores.append(-(d @ g[i]) * (d @ a[i].detach()) / 2)  # the other header token has no part in it
    np.testing.assert_allclose(found.shown, scores[0], atol=1e-6)
    np.testing.assert_allclose(found.absent, scores[1], atol=1e-6)
    np.testing.assert_allclose(found.delta, scores[0] - scores[1], atol=1e-6)
    # A latent that points to the unembedding of the shown answer's token, and is on, drives it.
    word = model.unembedding[pair.shown.ids[6]] - model.unembedding[pair.absent.ids[6]]
    sae.W_dec[7] = word * torch.sign(word @ a[0].detach())
    planted = gradient_attribution(
        sae, model, [pair], hook_name=LAST, tokens=("header",), resid_mean=a[0].detach() - word
    )
    assert planted.top(1) == [7]
    swapped = replace(pair, shown=pair.absent, absent=pair.shown)
    turned = gradient_attribution(
        sae, model, [swapped], hook_name=LAST, tokens=("header",), resid_mean=a[0].detach() - word
    )
    np.testing.assert_allclose(turned.delta, -planted.delta, atol=1e-7)


def test_scores_are_the_rise_of_the_loss_under_small_ablations(model: LoadedModel) -> None:
    """The residual is moved a thousandth of the way to the mean: the loss is linear there."""
    sae = drawn("topk", **SAE)
    mean = torch.full((32,), 0.01)
    found = gradient_attribution(sae, model, PAIRS, hook_name=HOOK, resid_mean=mean)
    choose, share = Chooser(("prompt", "header"), 1), 1e-2
    for latent in (0, 17):
        d = sae.W_dec[latent] / sae.W_dec[latent].norm()
        total = 0.0
        for pair in PAIRS:
            for sign, one in ((1, pair.shown), (-1, pair.absent)):
                batch = pad_rows([one], pad_id=0)
                selected = choose(batch)

                def edit(resid: torch.Tensor, _position: object, selected=selected, d=d) -> torch.Tensor:
                    moved = share * ((resid - mean) @ d).unsqueeze(-1) * d
                    return torch.where(selected.unsqueeze(-1), resid - moved, resid)

                before = answer_losses(model, batch).double()
                with edit_residual(model.hf, HOOK, edit):
                    rise = answer_losses(model, batch).double() - before
                # of three questions
                total += sign * float(rise) / share / int(selected.sum()) / N_PAIRS[pair.question_id] / 3
        assert found.delta[latent] == pytest.approx(total, rel=0.05, abs=2e-6)


def test_exact_ablation_agrees_where_the_loss_is_nearly_linear(model: LoadedModel) -> None:
    sae = drawn("topk", **SAE)
    found = gradient_attribution(sae, model, PAIRS, hook_name=HOOK)
    exact = exact_ablation(sae, model, PAIRS, range(40), hook_name=HOOK)
    assert exact.rank_correlation(found.delta) > 0.9
    assert exact.rank_correlation(exact.delta) == pytest.approx(1)
    assert exact.rank_correlation(-exact.delta) == pytest.approx(-1)
    with pytest.raises(SAEError, match="latent 40 is not in this SAE"):
        exact_ablation(sae, model, PAIRS, [40], hook_name=HOOK)


def test_integrated_gradients_of_orthogonal_directions_add_up_to_the_whole_effect(model: LoadedModel) -> None:
    """Completeness: over an orthonormal basis the scores sum to the loss at the mean minus the loss as it is."""
    sae = drawn("topk", d_in=32, d_sae=32, k=3)
    sae.W_dec.copy_(torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0])
    pair = PAIRS[0]
    mean = torch.from_numpy(gradient_attribution(sae, model, PAIRS, hook_name=HOOK).resid_mean).float()
    found = gradient_attribution(sae, model, [pair], hook_name=HOOK, resid_mean=mean, n_steps=64)
    batch = pad_rows([pair.shown], pad_id=0)
    selected = Chooser(("prompt", "header"), 1)(batch)
    with edit_residual(model.hf, HOOK, lambda resid, _: torch.where(selected.unsqueeze(-1), mean, resid)):
        at_mean = float(answer_losses(model, batch))
    assert found.shown.sum() * int(selected.sum()) == pytest.approx(at_mean - found.loss_shown, rel=0.02, abs=1e-4)
    assert found.loss_shown == pytest.approx(float(answer_losses(model, batch)), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_neither_batches_nor_padding_change_the_scores(model: LoadedModel, batch_size: int) -> None:
    sae = drawn("topk", **SAE)
    whole = gradient_attribution(sae, model, PAIRS, hook_name=HOOK)
    cut = gradient_attribution(sae, model, PAIRS, hook_name=HOOK, batch_size=batch_size)
    for name in ("delta", "per_question", "shown", "resid_mean"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_left_padding_gives_the_same_gradients(world: World, dtype: torch.dtype) -> None:
    hf = new_model(world, SIZES["tiny"], seed=0).eval().requires_grad_(False).to(dtype)
    model = LoadedModel("tiny", hf, build_tokenizer(world))
    choose, mean = Chooser(("prompt", "header"), 1), torch.zeros(32)
    rows = [PAIRS[0].shown, PAIRS[2].shown]
    found = [
        loss_gradient(model, pad_rows(rows, pad_id=0, side=side), HOOK, choose, mean) for side in ("left", "right")
    ]
    close = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-3}
    torch.testing.assert_close(found[0].gradient, found[1].gradient, **close)
    torch.testing.assert_close(found[0].loss, found[1].loss, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert found[0].gradient.abs().max() > 0


def test_every_question_weighs_the_same_however_many_pairs_it_has(model: LoadedModel) -> None:
    sae, mean = drawn("topk", **SAE), torch.zeros(32)
    found = gradient_attribution(sae, model, PAIRS, hook_name=HOOK, resid_mean=mean)
    assert (found.question_ids, found.pairs_per_question.tolist(), found.n_pairs) == (("a", "b", "c"), [3, 2, 1], 6)
    alone = {pair: gradient_attribution(sae, model, [pair], hook_name=HOOK, resid_mean=mean) for pair in PAIRS}
    for side in ("delta", "shown", "absent"):
        of_question = [
            np.mean([getattr(one, side) for pair, one in alone.items() if pair.question_id == question], axis=0)
            for question in "abc"
        ]
        np.testing.assert_allclose(getattr(found, side), np.mean(of_question, axis=0), atol=1e-8)
    np.testing.assert_allclose(found.per_question.mean(0), found.delta, atol=1e-8)
    low, high = found.interval(n_boot=200)
    assert ((low <= found.delta + 1e-9) & (found.delta <= high + 1e-9)).all()
    assert (low < high).all()
    one = gradient_attribution(drawn("topk", **SAE), model, PAIRS[:1], hook_name=HOOK)
    np.testing.assert_allclose(one.interval(n_boot=5), [one.delta] * 2, atol=1e-9)


def test_neither_the_order_of_pairs_nor_a_question_s_repetition_changes_what_drives_the_answers(
    model: LoadedModel,
) -> None:
    sae, mean = drawn("topk", **SAE), torch.zeros(32)
    others = [PAIRS[i] for i in (5, 3, 0, 4, 2, 1)]
    more = [*others, *(pair for pair in PAIRS if pair.question_id == "b"), PAIRS[3], PAIRS[3]]
    found, turned, repeated = (
        gradient_attribution(sae, model, pairs, hook_name=HOOK, resid_mean=mean, batch_size=5)
        for pairs in (PAIRS, others, more)
    )
    assert turned.question_ids == ("a", "c", "b")
    for other in (turned, repeated):
        np.testing.assert_allclose(other.delta, found.delta, atol=1e-7)
        rows = [other.question_ids.index(question) for question in found.question_ids]
        np.testing.assert_allclose(other.per_question[rows], found.per_question, atol=1e-6)
    effects = [
        exact_ablation(sae, model, pairs, [0, 17], hook_name=HOOK, resid_mean=mean).delta
        for pairs in (PAIRS, others, more)
    ]
    for other in effects[1:]:
        np.testing.assert_allclose(other, effects[0], atol=1e-7)


def test_a_map_has_the_score_at_every_selected_token(model: LoadedModel) -> None:
    sae = drawn("topk", **SAE)
    found = gradient_attribution(sae, model, PAIRS[:1], hook_name=HOOK)
    mean = torch.from_numpy(found.resid_mean).float()
    scores = attribution_map(sae, model, PAIRS[0].shown, [3, 9], hook_name=HOOK, resid_mean=mean)
    assert scores.shape == (2, len(PAIRS[0].shown))
    assert (scores[:, 1:6] != 0).all()
    assert (scores[:, 0] == 0).all()
    assert (scores[:, 6:] == 0).all()
    np.testing.assert_allclose(scores[:, 1:6].mean(1), found.shown[[3, 9]], rtol=1e-4)


def test_what_cannot_be_attributed_is_refused(model: LoadedModel) -> None:
    sae = drawn("topk", **SAE)
    empty = CompletionPair("q", row(0, 3), TokenRow(row(0, 0).ids, PARTS))
    with pytest.raises(DataError, match="no pairs of answers"):
        gradient_attribution(sae, model, [], hook_name=HOOK)
    with pytest.raises(DataError, match="1 of 2 texts have no token of an answer"):
        gradient_attribution(sae, model, [empty], hook_name=HOOK)
    with pytest.raises(DataError, match="none of the texts has a selected token"):
        gradient_attribution(sae, model, PAIRS, hook_name=HOOK, drop_first=50)
    with pytest.raises(DataError, match="12 of 12 texts have no selected token"):
        gradient_attribution(sae, model, PAIRS, hook_name=HOOK, drop_first=50, resid_mean=torch.zeros(32))
    with pytest.raises(ConfigError, match="no tokens are selected"):
        gradient_attribution(sae, model, PAIRS, hook_name=HOOK, tokens=())
    with pytest.raises(ConfigError, match="n_steps is 0"):
        gradient_attribution(sae, model, PAIRS, hook_name=HOOK, n_steps=0)
    with pytest.raises(IncompatibleError, match=r"resid_mean has 31 numbers.*d_model=32"):
        gradient_attribution(sae, model, PAIRS, hook_name=HOOK, resid_mean=torch.zeros(31))
    with pytest.raises(IncompatibleError, match="d_in=8"):
        gradient_attribution(drawn("topk", k=2), model, PAIRS, hook_name=HOOK)
    with torch.no_grad():
        assert math.isfinite(float(answer_losses(model, pad_rows([PAIRS[0].shown], pad_id=0))))
