"""Every metric against its formula, computed at once on all tokens."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import CacheFileError, DataError, IncompatibleError, ModelError
from sae_persona.model.hooks import edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.metrics import Reconstruction, reconstruction_metrics

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"


def rows_from(first: int) -> list[TokenRow]:
    """Seven rows of 4 to 10 tokens that are counted up."""
    return [TokenRow(tuple(range(first + i, first + 4 + 2 * i)), (Part.PROMPT,) * (4 + i)) for i in range(7)]


ROWS = rows_from(85)
"""Rows on which the untrained model loses by ablations; on others it gains."""


def counted_resid(model: LoadedModel) -> Tensor:
    """All tokens but the first of each row, every row run alone."""
    return torch.cat([residuals(model.hf, pad_rows([row], pad_id=0), [HOOK])[HOOK][0, 1:] for row in ROWS])


def log_probs(model: LoadedModel, replace: Callable[[Tensor], Tensor] = torch.clone) -> tuple[Tensor, Tensor]:
    """What is predicted after counted tokens, and what follows; their residuals are replaced by a function of them."""
    predicted, followed = [], []
    for row in ROWS:
        batch = pad_rows([row], pad_id=0)

        def edit(resid: Tensor, _position: object) -> Tensor:
            return torch.cat([resid[:, :1], replace(resid[:, 1:])], 1)

        with torch.no_grad(), edit_residual(model.hf, HOOK, edit):
            predicted.append(model.hf(input_ids=batch.ids).logits[0, 1:-1].double().log_softmax(-1))
        followed.append(torch.tensor(row.ids[2:]))
    return torch.cat(predicted), torch.cat(followed)


def entropy(model: LoadedModel, replace: Callable[[Tensor], Tensor] = torch.clone) -> float:
    predicted, followed = log_probs(model, replace)
    return -float(predicted[torch.arange(len(followed)), followed].mean())


def divergence(model: LoadedModel, replace: Callable[[Tensor], Tensor]) -> float:
    (clean, _), (edited, _) = log_probs(model), log_probs(model, replace)
    return float((clean.exp() * (clean - edited)).sum(-1).mean())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_reconstruction_is_measured_by_the_formulas(sae: "TopKSAE", tiny_model: LoadedModel, batch_size: int) -> None:
    x = counted_resid(tiny_model)
    f = sae.encode(x)
    x_hat = sae.decode(f)
    found = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK, batch_size=batch_size, splice=False)
    assert found.n_tokens == len(x) == sum(map(len, ROWS)) - len(ROWS)
    assert found.l0 == pytest.approx(float((f > 0).sum(-1).double().mean()))
    error, spread = (x - x_hat).square().sum(), (x - x.mean(0)).square().sum()
    assert found.fve == pytest.approx(float(1 - error / spread), rel=1e-4)
    assert found.mse == pytest.approx(float((x - x_hat).square().mean()), rel=1e-4)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(x, x_hat, dim=-1).mean()), abs=1e-5)
    assert found.density == pytest.approx((f > 0).double().mean(0).tolist())
    assert found.dead_fraction == pytest.approx(float(((f > 0).sum(0) == 0).double().mean()))
    spliced = {name: value for name, value in vars(found).items() if name[:3] in ("ce_", "kl_")}
    assert len(spliced) == 7
    assert set(spliced.values()) == {None}


@pytest.mark.parametrize("batch_size", [1, 64])
def test_predictions_are_those_of_the_edited_model(sae: "TopKSAE", tiny_model: LoadedModel, batch_size: int) -> None:
    mean = torch.linspace(-1, 1, 32)
    found = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK, batch_size=batch_size, ablation=mean)
    assert found.ce_clean == pytest.approx(entropy(tiny_model), rel=1e-5)
    assert found.ce_spliced == pytest.approx(entropy(tiny_model, sae), rel=1e-5)
    assert found.ce_ablated == pytest.approx(entropy(tiny_model, mean.expand_as), rel=1e-5)
    recovered = (found.ce_ablated - found.ce_spliced) / (found.ce_ablated - found.ce_clean)
    assert found.ce_recovered == pytest.approx(recovered)
    assert found.kl_spliced == pytest.approx(divergence(tiny_model, sae), rel=1e-4)
    assert found.kl_ablated == pytest.approx(divergence(tiny_model, mean.expand_as), rel=1e-4)
    assert found.kl_recovered == pytest.approx(1 - found.kl_spliced / found.kl_ablated)
    by_zeros = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK)
    assert by_zeros.ce_ablated == pytest.approx(entropy(tiny_model, torch.zeros_like), rel=1e-5)
    with torch.no_grad():
        ids = pad_rows([ROWS[0]], pad_id=0).ids
        assert torch.equal(tiny_model.hf(ids).logits, tiny_model.hf(ids).logits), "the model is left as it was"


def perfect(sae: "TopKSAE") -> "TopKSAE":
    """An SAE that loses nothing: each coordinate has a latent for either sign."""
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=64))
    signs = torch.cat([torch.eye(32), -torch.eye(32)])
    sae.load_state_dict({"W_dec": signs, "W_enc": signs.T, "b_enc": torch.zeros(64), "b_dec": torch.zeros(32)})
    return sae


def test_a_perfect_reconstruction_recovers_everything(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    found = reconstruction_metrics(perfect(sae), tiny_model, ROWS, hook_name=HOOK)
    assert found.fve == pytest.approx(1)
    assert found.ce_recovered == found.kl_recovered == pytest.approx(1)
    assert found.kl_spliced == pytest.approx(0, abs=1e-6)
    assert found.l0 == pytest.approx(32)


def test_nothing_is_recovered_where_the_ablation_costs_nothing(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    found = reconstruction_metrics(sae, tiny_model, rows_from(5), hook_name=HOOK)
    assert found.ce_ablated is not None
    assert found.ce_clean is not None
    assert found.ce_ablated < found.ce_clean
    assert found.ce_recovered is None
    assert found.kl_recovered is not None


def test_predicting_the_mean_explains_nothing(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    sae.W_dec[:] = 0
    sae.b_dec[:] = counted_resid(tiny_model).mean(0)
    assert reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK, splice=False).fve == pytest.approx(0, abs=1e-5)


def test_outliers_are_left_out_and_left_alone(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    norms = counted_resid(tiny_model).norm(dim=-1)
    limit = float(norms.median()) * 1.0001  # no norm is rounded across it
    found = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK, max_norm=limit)
    assert found.n_tokens == int((norms <= limit).sum())


def test_density_is_there_before_all_tokens_are_seen(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    sums = Reconstruction(sae)
    assert sums.density.sum() == 0
    sums.add(counted_resid(tiny_model))
    assert float(sums.density.sum()) == pytest.approx(3, abs=0.5), "at most k = 3 latents fire on a token"


def test_numbers_are_finite_and_errors_named(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    found = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK)
    assert all(math.isfinite(value) for value in (found.fve, found.ce_recovered or 0.0, found.cosine))
    with pytest.raises(DataError, match="more than 4 tokens"):
        reconstruction_metrics(sae, tiny_model, ROWS[:1], hook_name=HOOK, drop_first=4)
    sae.cfg.d_in = 7
    with pytest.raises(IncompatibleError):
        reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK)


def test_a_latent_fires_with_either_sign(tiny_model: LoadedModel) -> None:
    from drawn_sae import drawn

    sae = drawn("abstopk", d_in=32, d_sae=12, k=3)
    gated = sae.encode(counted_resid(tiny_model))
    assert (gated < 0).any()
    found = reconstruction_metrics(sae, tiny_model, ROWS, hook_name=HOOK, splice=False)
    assert found.l0 == pytest.approx(float((gated != 0).sum(-1).double().mean()))


@pytest.mark.parametrize("max_norm", [None, 1e3])
def test_activations_that_are_no_numbers_are_refused(
    sae: "TopKSAE", tiny_model: LoadedModel, max_norm: float | None, tmp_path: Path
) -> None:
    broken = dataclasses.replace(tiny_model, hf=copy.deepcopy(tiny_model.hf))
    broken.hf.get_input_embeddings().weight.data[ROWS[4].ids[-1]] = torch.nan
    with pytest.raises(CacheFileError) as of_cache:
        write_cache(broken, ROWS, tmp_path / "acts.h5", hook_names=[HOOK], dtype="float32", batch_size=3)
    with pytest.raises(ModelError, match="not finite in float32 at document 4, position 0") as refusal:
        reconstruction_metrics(sae, broken, ROWS, hook_name=HOOK, max_norm=max_norm, batch_size=3)
    what, _, _ = str(refusal.value).partition(". Check")
    assert str(of_cache.value).startswith(what)
