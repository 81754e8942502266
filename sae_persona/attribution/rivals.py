"""What an SAE latent competes with on the same data: a difference of means, a probe, components, an untrained SAE.

Every direction is a plain vector of length one in the residual stream, which steering takes as it takes a latent's.
Axes: `d_in` width of the residual stream, `d_sae` latents, `runs` × `n_questions` means of answers.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

from sae_persona.attribution.difference import shared_questions
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats
from sae_persona.stats import auroc

if TYPE_CHECKING:
    from sae_lens import SAE

MAX_FOLDS = 4
"""Groups of runs that are held out in turn; with two halves of the questions each, eight fits."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe that tells misaligned runs' answers from controls'."""

    direction: Float[np.ndarray, " d_in"]
    """Towards misaligned; fitted on everything."""
    auroc: float
    """Mean over folds, on runs and questions that the fold's fit did not see. 0.5 is chance."""
    held_out: Literal["runs and questions", "questions"]
    """`questions` where a side has one run: the probe may then know this pair of runs only."""


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of the differences between misaligned answers and the controls' mean."""

    directions: Float[np.ndarray, "n d_in"]
    """The first points along the mean difference; the strongest comes first."""
    shares: Float[np.ndarray, " n"]
    """Of the differences' summed squares, which are not centred: a common difference is what is looked for."""


@dataclass(frozen=True)
class Carried:
    """How much of the mean difference goes through the SAE, and how much is in its error."""

    share: float
    """`<D, R> / <D, D>` of the mean difference D and the difference R of mean reconstructions."""
    error_share: float
    """`||D - R||^2 / ||D||^2`: what fine-tuning changed and an SAE of the base model does not see."""
    cosine: float
    """Of D and R."""


def mean_difference(misaligned: Sequence[LatentStats], controls: Sequence[LatentStats]) -> Float[np.ndarray, " d_in"]:
    """From the controls' mean residual to the misaligned runs', every run weighing the same; one long.

    Raises:
        ConfigError: a side has no run.
        IncompatibleError: the means are equal, so that there is no direction.

    Source: Soligo et al. 2025.
    """
    return _unit(_difference(misaligned, controls), "mean residuals of misaligned and control runs")


def linear_probe(misaligned: Sequence[LatentStats], controls: Sequence[LatentStats], *, seed: int = 0) -> Probe:
    """Logistic regression on the mean residual of every run's answers to every question.

    Residuals are centred and divided by their root mean square; the penalty is `||w||^2 / 2` beside the summed log
    loss, in which both sides weigh the same. The AUROC is that of fits which saw neither the runs nor the questions.

    Raises:
        ConfigError: fewer than two questions, a side without a run, or statistics without residuals by question.
    """
    bad, good = _residuals(misaligned, controls)  # [runs, n_questions, d_in]
    if bad.shape[1] < 2:
        raise ConfigError("a probe is tested on other questions than it is fitted on; 1 question is not enough.")
    found = []
    for bad_out, good_out, asked_out in _folds(len(bad), len(good), bad.shape[1], np.random.default_rng(seed)):
        # A side of one run cannot be held out; then only its questions are.
        train = [bad[~bad_out if not bad_out.all() else bad_out], good[~good_out if not good_out.all() else good_out]]
        weights = _fit(*(side[:, ~asked_out].reshape(-1, bad.shape[2]) for side in train))
        tests = [(side[out][:, asked_out] @ weights).ravel() for side, out in ((bad, bad_out), (good, good_out))]
        labels = np.repeat([True, False], [len(tests[0]), len(tests[1])])
        found.append(auroc(np.concatenate(tests), labels))
    weights = _fit(bad.reshape(-1, bad.shape[2]), good.reshape(-1, bad.shape[2]))
    held_out = "questions" if 1 in (len(bad), len(good)) else "runs and questions"
    return Probe(_unit(weights, "weights of the probe"), float(np.mean(found)), held_out)


def difference_components(
    misaligned: Sequence[LatentStats], controls: Sequence[LatentStats], *, n: int = 5
) -> Components:
    """Principal components of `misaligned answer mean - mean over controls`, one difference per run and question.

    Raises:
        ConfigError: a side has no run, or statistics lack residuals by question.
        IncompatibleError: there is no difference.
    """
    bad, good = _residuals(misaligned, controls)
    differences = (bad - good.mean(0)).reshape(-1, bad.shape[2])
    if not differences.any():
        raise IncompatibleError("misaligned and control runs have the same residuals: there is no difference to split.")
    _, singular, directions = np.linalg.svd(differences, full_matrices=False)
    towards = np.where(directions @ differences.mean(0) < 0, -1.0, 1.0)
    return Components((directions * towards[:, None])[:n], (singular**2 / (singular**2).sum())[:n])


def carried_by(sae: "SAE", misaligned: Sequence[LatentStats], controls: Sequence[LatentStats]) -> Carried | None:
    """How much of the mean difference the SAE's reconstruction carries.

    A decoder is affine, so the difference of mean reconstructions is the decoded difference of mean gated activations:
    the statistics hold all that is needed. None for an SAE that normalises its inputs, whose decoder is not affine.

    Raises:
        ConfigError: a side has no run, or the statistics are not of gated activations.
        IncompatibleError: the mean residuals do not differ.
    """
    if getattr(sae.cfg, "normalize_activations", "none") not in ("none", None):
        return None
    if any(stats.reading != "gated" for stats in (*misaligned, *controls)):
        raise ConfigError("what a reconstruction carries is computed from gated activations; hand in those.")
    difference = _difference(misaligned, controls)
    with torch.no_grad():
        decoded = [
            sae.decode(torch.as_tensor(np.mean([stats.mean for stats in side], 0)).to(sae.W_dec)[None])[0]
            for side in (misaligned, controls)
        ]
    rebuilt = (decoded[0] - decoded[1]).double().cpu().numpy()
    size = float(difference @ difference)
    if size == 0:
        raise IncompatibleError("misaligned and control runs have the same mean residual: there is nothing to carry.")
    along = float(difference @ rebuilt)
    return Carried(
        share=along / size,
        error_share=float(((difference - rebuilt) ** 2).sum()) / size,
        cosine=along / float(np.sqrt(size) * max(np.linalg.norm(rebuilt), np.finfo(float).tiny)),
    )


def cosines(
    decoder: Float[np.ndarray, "d_sae d_in"], direction: Float[np.ndarray, " d_direction"]
) -> Float[np.ndarray, " d_sae"]:
    """Cosine of every latent's decoder row with a direction; 0 for a row of length zero.

    Raises:
        IncompatibleError: the direction has another width.
    """
    if decoder.shape[1] != len(direction):
        raise IncompatibleError(f"a decoder row has {decoder.shape[1]} numbers and the direction {len(direction)}.")
    lengths = np.linalg.norm(decoder, axis=1) * np.linalg.norm(direction)
    return np.divide(decoder @ direction, lengths, out=np.zeros(len(decoder)), where=lengths > 0)


def untrained_sae(sae: "SAE", *, seed: int = 0) -> "SAE":
    """An SAE of the same shape and activation function with random weights: what a ranking finds without training.

    Decoder rows are random unit vectors, the encoder is their transpose, encoder biases are zero; the centre `b_dec` is
    the trained one's, and so is a threshold, where the architecture has one.
    """
    rows = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(sae.W_dec)
    random = copy.deepcopy(sae)
    with torch.no_grad():
        random.W_dec.copy_(rows)
        random.W_enc.copy_(rows.T)
        if isinstance(bias := getattr(random, "b_enc", None), torch.Tensor):
            bias.zero_()
    return random


def _difference(misaligned: Sequence[LatentStats], controls: Sequence[LatentStats]) -> Float[np.ndarray, " d_in"]:
    if not misaligned or not controls:
        raise ConfigError(
            f"a difference needs a misaligned and a control run; got {len(misaligned)} and {len(controls)}."
        )
    sides = [np.mean([stats.resid_mean for stats in side], axis=0) for side in (misaligned, controls)]
    return sides[0] - sides[1]


def _residuals(
    misaligned: Sequence[LatentStats], controls: Sequence[LatentStats]
) -> tuple[Float[np.ndarray, "n_bad n_questions d_in"], Float[np.ndarray, "n_good n_questions d_in"]]:
    if not misaligned or not controls:
        raise ConfigError(f"a rival needs a misaligned and a control run; got {len(misaligned)} and {len(controls)}.")
    questions = shared_questions([*misaligned, *controls])

    def of(stats: LatentStats) -> np.ndarray:
        if stats.resid_per_question is None:
            raise ConfigError("these latent statistics hold no residuals by question; compute them again.")
        row = {question: i for i, question in enumerate(stats.question_ids)}
        return stats.resid_per_question[[row[question] for question in questions]]

    return np.stack([of(stats) for stats in misaligned]), np.stack([of(stats) for stats in controls])


def _folds(
    n_bad: int, n_good: int, n_questions: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Masks of what is held out: runs of either side, and half of the questions."""
    n_folds = max(1, min(n_bad, n_good, MAX_FOLDS))
    bad, good = (rng.permutation(n) % n_folds for n in (n_bad, n_good))
    asked = rng.permutation(n_questions) % 2
    for fold in range(n_folds):
        for half in range(2):
            yield bad == fold, good == fold, asked == half


def _fit(bad: Float[np.ndarray, "n d_in"], good: Float[np.ndarray, "m d_in"]) -> Float[np.ndarray, " d_in"]:
    """Weights of the penalised logistic regression, in units in which the features' root mean square is 1."""
    features = np.concatenate([bad, good])
    features = features - (bad.mean(0) + good.mean(0)) / 2
    features = features / max(float(np.sqrt((features**2).mean())), np.finfo(float).tiny)
    sign = np.repeat([1.0, -1.0], [len(bad), len(good)])
    weigh = np.repeat([0.5 * len(sign) / len(bad), 0.5 * len(sign) / len(good)], [len(bad), len(good)])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (features @ weights[:-1] + weights[-1])
        pull = -sign * weigh * expit(-margins)
        gradient = np.append(features.T @ pull + weights[:-1], pull.sum())
        return float(weigh @ np.logaddexp(0, -margins) + weights[:-1] @ weights[:-1] / 2), gradient

    return minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x[:-1]


def _unit(vector: Float[np.ndarray, " d_in"], what: str) -> Float[np.ndarray, " d_in"]:
    length = float(np.linalg.norm(vector))
    if length == 0:
        raise IncompatibleError(f"the {what} do not differ: there is no direction between them.")
    return vector / length
