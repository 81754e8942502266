"""Δ-attribution: which latents make one model write the answers that show a behaviour rather than those that do not.

Axes: `n` chosen tokens, `c` latents of one chunk, `d_model` width of the residual stream, `d_sae` latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_persona.attribution.loss import Chooser, LossGradient, loss_gradient, mean_residual
from sae_persona.attribution.pairs import CompletionPair
from sae_persona.data.tokens import TokenRow, batches, pad_rows
from sae_persona.errors import ConfigError, DataError, IncompatibleError
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import Selection, unit_decoder
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE

CONTEXT: tuple[Selection, ...] = ("prompt", "header")
"""Everything before the answer: the tokens that the paper attributes to."""
_N_LATENTS = 4096
"""Latents whose products are held at once."""


@dataclass(frozen=True, eq=False)
class LatentAttribution:
    """How much more each latent does for answers that show a behaviour than for answers that do not.

    In nats per token of the answer: how much more the answer's cross-entropy would rise, by a first-order estimate, if
    the latent's direction were set to its mean on one average token of the selection. Positive drives the behaviour.
    """

    tokens: tuple[Selection, ...]
    """Where the latents were looked at."""
    n_steps: int
    """1: the gradient at the residual itself; more: integrated from the mean residual to it in so many steps."""
    delta: Float[np.ndarray, " d_sae"]
    """`shown` minus `absent`: the mean of `per_question`, in which every question weighs the same."""
    shown: Float[np.ndarray, " d_sae"]
    """Mean over questions of the mean score of a question's answers that show the behaviour."""
    absent: Float[np.ndarray, " d_sae"]
    question_ids: tuple[str, ...]
    per_question: Float[np.ndarray, "n_questions d_sae"]
    """Mean over the pairs of each question of the answers' scores, `shown` minus `absent`, in float32."""
    pairs_per_question: Int[np.ndarray, " n_questions"]
    loss_shown: float
    """Mean cross-entropy of the answers, in nats per token. Near zero it is saturated, and gradients say little."""
    loss_absent: float
    resid_mean: Float[np.ndarray, " d_model"]
    """What ablation sets the residual to, along a latent's direction."""

    @property
    def n_pairs(self) -> int:
        """Pairs of answers behind every number."""
        return int(self.pairs_per_question.sum())

    def top(self, n: int) -> list[int]:
        """The `n` latents of the highest `delta`."""
        return np.argsort(-self.delta, kind="stable")[:n].tolist()

    def interval(
        self, *, seed: int = 0, n_boot: int = 1000
    ) -> tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
        """The 95 % interval of every `delta`, bootstrapped over questions.

        With a single question there is nothing to resample, and the interval is the value itself.
        """
        n = len(self.question_ids)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)  # [n_boot, n_questions]
        weights = draws / n
        low, high = np.empty_like(self.delta), np.empty_like(self.delta)
        for start in range(0, len(self.delta), _N_LATENTS):
            chunk = slice(start, start + _N_LATENTS)
            low[chunk], high[chunk] = np.quantile(weights @ self.per_question[:, chunk], [0.025, 0.975], axis=0)
        return low, high


def gradient_attribution(
    sae: "SAE",
    model: LoadedModel,
    pairs: Sequence[CompletionPair],
    *,
    hook_name: str,
    tokens: Sequence[Selection] = CONTEXT,
    resid_mean: Float[Tensor, " d_model"] | None = None,
    n_steps: int = 1,
    drop_first: int = 1,
    batch_size: int = 32,
) -> LatentAttribution:
    """Δ-attribution of all latents, from one forward and one backward pass for every answer.

    A latent's score for an answer is the mean over the selected tokens t of

        δ_t = -(g_t · d) ((a_t - ā) · d)

    with `a_t` the residual, `ā` its mean (`resid_mean`; by default over these texts' selected tokens), `g_t` the
    gradient of the answer's mean cross-entropy, and `d` the latent's unit decoder direction. It estimates how much the
    cross-entropy would rise if the direction were mean-ablated at that token. Where the loss saturates, its gradient
    vanishes: with `n_steps` above 1, `g_t` is the mean over as many points on the way from `ā` to `a_t` (integrated
    gradients, Sundararajan et al. 2017), at as many times the cost.

    A question's pairs are averaged first, then the questions, each of which weighs the same: neither the order of the
    pairs nor how many of them a question happened to give changes what is compared.

    Raises:
        DataError: no pairs, or an answer without a token or without a selected token before its end.
        HookError, IncompatibleError: the SAE does not fit the model.

    Source: Wang et al. 2025, and its follow-up on latent attribution (December 2025).
    """
    check_fits(sae, model, hook_name)
    _check(pairs, tokens, n_steps)
    rows = [row for pair in pairs for row in (pair.shown, pair.absent)]  # row 2 i + 1 is the absent one of pair i
    question_ids = tuple(dict.fromkeys(pair.question_id for pair in pairs))
    index_of = {question: i for i, question in enumerate(question_ids)}
    choose = Chooser(tuple(tokens), drop_first)
    with model.active():
        if resid_mean is None:
            resid_mean = mean_residual(model, rows, hook_name, choose, batch_size=batch_size)
        check_width(resid_mean, model)
        sums = _Sums(len(question_ids), sae)
        for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
            owner = torch.tensor([index_of[pairs[i // 2].question_id] for i in indices])
            absent = torch.tensor([i % 2 for i in indices])
            sums.add(loss_gradient(model, batch, hook_name, choose, resid_mean, n_steps=n_steps), owner, absent)
    return sums.result(tuple(tokens), n_steps, question_ids, [index_of[pair.question_id] for pair in pairs], resid_mean)


def attribution_map(
    sae: "SAE",
    model: LoadedModel,
    row: TokenRow,
    latents: Sequence[int],
    *,
    hook_name: str,
    resid_mean: Float[Tensor, " d_model"],
    tokens: Sequence[Selection] = CONTEXT,
    n_steps: int = 1,
    drop_first: int = 1,
) -> Float[np.ndarray, "n_latents seq"]:
    """δ of chosen latents at every token of one text with an answer; zero at tokens that are not selected.

    The mean over the selected tokens is the score of the answer in `gradient_attribution`.
    """
    check_fits(sae, model, hook_name)
    check_width(resid_mean, model)
    choose = Chooser(tuple(tokens), drop_first)
    batch = pad_rows([row], pad_id=model.pad_id, device=model.device)
    with model.active():
        found = loss_gradient(model, batch, hook_name, choose, resid_mean, n_steps=n_steps)
    directions = unit_decoder(sae)[list(latents)].to(found.gradient)
    scores = torch.zeros(len(latents), len(row), device=found.gradient.device)
    scores[:, found.selected[0]] = -((found.gradient @ directions.T) * (found.offset @ directions.T)).T
    return scores.cpu().numpy()


class _Sums:
    """Scores summed over answers, by question, side and latent."""

    def __init__(self, n_questions: int, sae: "SAE") -> None:
        self.directions = unit_decoder(sae)
        self.scores = torch.zeros(2, n_questions, sae.cfg.d_sae, device=self.directions.device)
        self.losses = torch.zeros(2, dtype=torch.float64)

    def add(self, found: LossGradient, owner: Int[Tensor, " batch"], absent: Int[Tensor, " batch"]) -> None:
        device = self.directions.device
        self.losses.index_add_(0, absent, found.loss.double().cpu())
        groups, group = (absent * self.scores.shape[1] + owner).unique(return_inverse=True)
        # [groups, n]: what each token weighs in the sum of its group's scores
        of_group = torch.nn.functional.one_hot(group.to(device), len(groups)).float().T
        weights = -(of_group / found.selected.sum(-1).to(device))[:, found.selected.nonzero()[:, 0].to(device)]
        gradient, offset = found.gradient.to(device), found.offset.to(device)
        for start in range(0, len(self.directions), _N_LATENTS):
            chunk = slice(start, start + _N_LATENTS)
            d = self.directions[chunk].T
            products = (gradient @ d).mul_(offset @ d)  # [n, c]
            self.scores.view(-1, len(self.directions))[groups.to(device), chunk] += weights @ products

    def result(
        self,
        tokens: tuple[Selection, ...],
        n_steps: int,
        question_ids: tuple[str, ...],
        question_of_pair: Sequence[int],
        resid_mean: Float[Tensor, " d_model"],
    ) -> LatentAttribution:
        n_pairs = np.bincount(question_of_pair, minlength=len(question_ids))
        of_questions = self.scores.cpu().numpy() / n_pairs[:, None].astype(np.float32)  # [2, n_questions, d_sae]
        shown, absent = of_questions.mean(1, dtype=np.float64)
        loss_shown, loss_absent = (self.losses / len(question_of_pair)).tolist()
        return LatentAttribution(
            tokens=tokens,
            n_steps=n_steps,
            delta=shown - absent,
            shown=shown,
            absent=absent,
            question_ids=question_ids,
            per_question=of_questions[0] - of_questions[1],
            pairs_per_question=n_pairs,
            loss_shown=loss_shown,
            loss_absent=loss_absent,
            resid_mean=resid_mean.double().cpu().numpy(),
        )


def _check(pairs: Sequence[CompletionPair], tokens: Sequence[Selection], n_steps: int) -> None:
    if not pairs:
        raise DataError("there are no pairs of answers; expected at least one with and one without the behaviour.")
    if not tokens:
        raise ConfigError("no tokens are selected; name at least one of prompt, header, answer, last.")
    if n_steps < 1:
        raise ConfigError(f"n_steps is {n_steps}; expected 1 (the gradient itself) or more (integrated gradients).")


def check_width(resid_mean: Float[Tensor, " width"], model: LoadedModel) -> None:
    """Raise `IncompatibleError` for a mean of another width than the model's residual stream."""
    if len(resid_mean) != model.d_model:
        raise IncompatibleError(
            f"resid_mean has {len(resid_mean)} numbers; {model.source} has d_model={model.d_model}. "
            "Take the mean of this model's residual stream."
        )
