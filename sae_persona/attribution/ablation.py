"""What mean-ablating a latent really does to the cross-entropy of answers: the check of `gradient_attribution`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.attribution.gradient import CONTEXT, check_width
from sae_persona.attribution.loss import Chooser, answer_losses, mean_residual
from sae_persona.attribution.pairs import CompletionPair, question_weights
from sae_persona.data.tokens import batches
from sae_persona.errors import SAEError
from sae_persona.model.hooks import Edit, Position, Resid, edit_residual
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import Selection, unit_decoder
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """How much the cross-entropy of answers rises when a latent's direction is mean-ablated, one latent at a time.

    In nats per token of the answer and per ablated token, as the scores of `LatentAttribution` are.
    """

    latents: tuple[int, ...]
    delta: Float[np.ndarray, " n_latents"]
    """`shown` minus `absent`, each the mean over questions of the mean over a question's answers."""
    shown: Float[np.ndarray, " n_latents"]
    absent: Float[np.ndarray, " n_latents"]

    def rank_correlation(self, estimate: Float[np.ndarray, " d_sae"]) -> float:
        """Spearman's correlation of `delta` with an estimate for all latents, such as `LatentAttribution.delta`."""
        ranks = [_ranks(values) for values in (self.delta, estimate[list(self.latents)])]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def exact_ablation(
    sae: "SAE",
    model: LoadedModel,
    pairs: Sequence[CompletionPair],
    latents: Sequence[int],
    *,
    hook_name: str,
    tokens: Sequence[Selection] = CONTEXT,
    resid_mean: Float[Tensor, " d_model"] | None = None,
    drop_first: int = 1,
    batch_size: int = 32,
) -> AblationEffects:
    """Set each latent's direction to its mean at all selected tokens at once, and compute every answer's loss again.

    The rise is divided by the number of ablated tokens, to be compared with a mean over tokens. This takes a forward
    pass per latent and answer, so it is for the few that `gradient_attribution` puts first.

    Raises:
        SAEError: a latent that the SAE does not have.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    check_fits(sae, model, hook_name)
    for latent in latents:
        if not 0 <= latent < sae.cfg.d_sae:
            raise SAEError(f"latent {latent} is not in this SAE, whose latents are 0 to {sae.cfg.d_sae - 1}.")
    choose = Chooser(tuple(tokens), drop_first)
    rows = [row for pair in pairs for row in (pair.shown, pair.absent)]
    directions = unit_decoder(sae)[list(latents)]
    weights = question_weights(pairs)
    rises = np.zeros((2, len(latents)))
    with model.active(), torch.no_grad():
        if resid_mean is None:
            resid_mean = mean_residual(model, rows, hook_name, choose, batch_size=batch_size)
        check_width(resid_mean, model)
        for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
            selected, absent = choose(batch), np.array([i % 2 for i in indices])
            weight = weights[[i // 2 for i in indices]]
            whole = answer_losses(model, batch)
            for i, direction in enumerate(directions):
                with edit_residual(model.hf, hook_name, _set_to_mean(direction, selected, resid_mean)):
                    rise = (answer_losses(model, batch) - whole) / selected.sum(-1)
                for side in (0, 1):
                    rises[side, i] += (weight * rise.double().cpu().numpy())[absent == side].sum()
    shown, absent = rises
    return AblationEffects(tuple(latents), shown - absent, shown, absent)


def _set_to_mean(
    direction: Float[Tensor, " d_model"], selected: Bool[Tensor, "batch seq"], resid_mean: Float[Tensor, " d_model"]
) -> Edit:
    def edit(resid: Resid, _position: Position) -> Resid:
        d = direction.to(resid)
        along = (resid - resid_mean.to(resid)) @ d
        return torch.where(selected.unsqueeze(-1), resid - along.unsqueeze(-1) * d, resid)

    return edit


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts + 1) / 2)[inverse]
