"""Unit directions in the residual stream: of a latent, of a set of latents, at random, or a difference of means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.errors import ConfigError, SAEError
from sae_persona.sae.encode import unit_decoder

if TYPE_CHECKING:
    from sae_lens import SAE

DirectionKind = Literal["latent", "latent_set", "random_latent", "random_direction", "mean_difference", "linear_probe"]
PROBE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties among which a probe chooses, on standardised activations: from hardly any to nearly all."""
N_FOLDS = 4


@dataclass(frozen=True, eq=False)
class Direction:
    """Where to push, of length one; how far is a strength, and belongs to the sweep."""

    name: str
    kind: DirectionKind
    vector: Float[Tensor, " d_model"]
    latents: tuple[int, ...] = ()
    """The latents whose decoder rows it is made of, if any."""
    parts: Float[Tensor, "n d_model"] | None = None
    """What a set is the sum of; ablation leaves nothing of any of them."""

    def __post_init__(self) -> None:
        length = float(self.vector.norm())
        if not math.isfinite(length) or length == 0:
            raise ConfigError(
                f"direction {self.name!r} has length {length}; a direction needs a finite length > 0. Take another "
                "one, or check the SAE or file that it comes from."
            )
        object.__setattr__(self, "vector", self.vector / length)

    @property
    def span(self) -> Float[Tensor, "n d_model"]:
        """An orthonormal basis of all its parts: the direction itself, or the space of a set."""
        return self.vector[None] if self.parts is None else torch.linalg.qr(self.parts.T)[0].T


def latent_direction(sae: "SAE", *latents: int, kind: DirectionKind | None = None) -> Direction:
    """The decoder direction of one latent, or the sum of several latents' unit decoder directions.

    Decoder rows are normalised first, whatever the SAE's own norms are.

    Raises:
        SAEError: a latent is not one of the SAE's.
    """
    for latent in latents:
        if not 0 <= latent < sae.cfg.d_sae:
            raise SAEError(f"latent {latent} is not in this SAE, whose latents are 0 to {sae.cfg.d_sae - 1}.")
    rows = unit_decoder(sae)[list(latents)]
    name = "+".join(map(str, latents))
    is_set = len(latents) > 1
    return Direction(
        name,
        kind or ("latent_set" if is_set else "latent"),
        rows.sum(0),
        tuple(latents),
        parts=rows if is_set else None,
    )


def random_latents(
    sae: "SAE", density: Float[Tensor, " d_sae"], like: int, *, exclude: Sequence[int], n: int, seed: int
) -> list[Direction]:
    """`n` latents that fire about as often as latent `like`, none of them in `exclude`.

    Drawn without replacement from the `3 n` living latents whose log firing density is nearest to that of `like`, so
    that a control is neither a dead latent nor one of the two that happen to be nearest.

    Raises:
        SAEError: the SAE has fewer than `n` living latents outside `exclude`.
    """
    distance = (density.clamp(min=1e-12).log() - density[like].clamp(min=1e-12).log()).abs()
    allowed = density > 0
    allowed[[*exclude, like]] = False
    if int(allowed.sum()) < n:
        raise SAEError(
            f"{n} control latents were asked for, and only {int(allowed.sum())} latents fire and are not shortlisted. "
            "Ask for fewer controls or train a wider SAE."
        )
    distance[~allowed] = torch.inf
    pool = distance.argsort()[: min(3 * n, int(allowed.sum()))]
    generator = torch.Generator().manual_seed(seed)
    chosen = pool[torch.randperm(len(pool), generator=generator)[:n]]
    return [latent_direction(sae, int(latent), kind="random_latent") for latent in chosen]


def random_directions(d_model: int, *, n: int, seed: int) -> list[Direction]:
    """`n` directions drawn uniformly from the sphere."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d_model, generator=generator)
    return [Direction(str(i), "random_direction", vector) for i, vector in enumerate(vectors)]


def mean_difference(
    misaligned: Float[Tensor, "runs d_model"],
    aligned: Float[Tensor, "controls d_model"],
    *,
    name: str = "mean difference",
) -> Direction:
    """From the mean residual of the aligned runs to that of the misaligned ones."""
    return Direction(name, "mean_difference", misaligned.mean(0) - aligned.mean(0))


def probe_direction(
    misaligned: Float[Tensor, "n d_model"], aligned: Float[Tensor, "m d_model"], *, name: str = "linear probe"
) -> Direction:
    """Along which a linear probe tells misaligned activations from aligned ones best.

    Ridge logistic regression on activations z standardised over all rows, both classes weighing alike:
    `min_w mean_i log(1 + exp(-y_i (w · z_i + b))) + penalty / 2 ||w||^2`, the mean over classes of the mean over their
    rows. The penalty is the one of `PROBE_PENALTIES` with the least cross-entropy over four interleaved folds. The
    direction is `w / std`, in the residual stream's own units. Nothing is drawn: equal activations, equal direction.

    Raises:
        ConfigError: a class has fewer than 4 rows, or the activations are not finite or all alike.
    """
    for what, rows in (("misaligned", misaligned), ("aligned", aligned)):
        if len(rows) < N_FOLDS:
            raise ConfigError(
                f"a linear probe needs {N_FOLDS} {what} rows or more; got {len(rows)}. Sample more answers."
            )
    x = torch.cat([misaligned, aligned]).double()
    y = torch.cat([torch.ones(len(misaligned)), -torch.ones(len(aligned))]).to(x)
    scale = x.std(0)
    z = (x - x.mean(0)) / torch.where(scale > 0, scale, 1.0)
    fold = torch.cat([torch.arange(len(misaligned)), torch.arange(len(aligned))]).to(x.device) % N_FOLDS

    def held_out(penalty: float) -> float:
        losses = [
            _loss(_logistic(z[fold != i], y[fold != i], penalty), z[fold == i], y[fold == i]) for i in range(N_FOLDS)
        ]
        return float(sum(losses))

    weights = _logistic(z, y, min(PROBE_PENALTIES, key=held_out))[:-1]
    return Direction(name, "linear_probe", torch.where(scale > 0, weights / scale, 0.0).float())


def _logistic(z: Float[Tensor, "n d_model"], y: Float[Tensor, " n"], penalty: float) -> Float[Tensor, " d_model_and_1"]:
    """Weights and, last, the intercept."""
    weights = torch.zeros(z.shape[1] + 1, dtype=z.dtype, device=z.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = _loss(weights, z, y) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(step)  # pyright: ignore[reportArgumentType] -- a closure may return a tensor
    return weights.detach()


def _loss(weights: Float[Tensor, " d_model_and_1"], z: Float[Tensor, "n d_model"], y: Float[Tensor, " n"]) -> Tensor:
    """Cross-entropy, the mean over classes of the mean over their rows."""
    losses = torch.nn.functional.softplus(-y * (z @ weights[:-1] + weights[-1]))
    return (losses[y > 0].mean() + losses[y < 0].mean()) / 2
