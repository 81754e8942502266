"""Adam on the weights of an SAE in training, whose decoder rows stay one long.

What points along a decoder row is taken out of its gradient first, as it would only change the row's length, and the
row is made one long again at the end.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.sae.ranks import Ranks
from sae_persona.sae.sparse import ByLatent, runs_triton
from sae_persona.sae.step import Gradients, Weights

BETAS, EPS = (0.9, 0.999), 1e-8


class Adam(Protocol):
    """The optimiser of one SAE's weights."""

    def set_lr(self, lr: float) -> None:
        """The learning rate from here on."""

    def step(self, gradients: Gradients) -> None:
        """Change the weights, in place."""

    def state(self) -> dict[str, Tensor]:
        """Moments and the number of steps, as `WEIGHT.exp_avg`, `WEIGHT.exp_avg_sq` and `WEIGHT.step`."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state, of this optimiser or of the other."""


def adam_of(weights: Weights, ranks: Ranks) -> Adam:
    """The one that is fastest where the weights are: on a GPU with Triton, for a process alone, the fused one."""
    fused = runs_triton(weights.encoder) and ranks.split is None
    return FusedAdam(weights) if fused else TorchAdam(weights)


class TorchAdam:
    """PyTorch's, on gradients that are written out."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._named = dict(weights.named())
        self._adam = torch.optim.Adam(list(self._named.values()), betas=BETAS, eps=EPS, fused=True)

    def set_lr(self, lr: float) -> None:
        """The learning rate from here on."""
        self._adam.param_groups[0]["lr"] = lr

    def step(self, gradients: Gradients) -> None:
        """Change the weights, in place."""
        dense = gradients.dense()
        remove_parallel(dense.decoder, self._weights.decoder)
        _step(self._adam, self._named, dict(dense.named()))
        normalise_rows(self._weights.decoder)

    def state(self) -> dict[str, Tensor]:
        """Moments and the number of steps."""
        return _state(self._adam, self._named)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        _restore(self._adam, self._named, state)


class FusedAdam:
    """On a GPU, without writing a matrix's gradient: a row's is summed, used and forgotten by one block of threads.

    Whatever changes from step to step is on the device, so that a recorded step can be replayed.
    """

    def __init__(self, weights: Weights) -> None:
        device = weights.encoder.device
        self._weights = weights
        self._biases = {"b_enc": weights.b_enc, "b_dec": weights.b_dec}
        self._lr = torch.zeros((), device=device)
        self._adam = torch.optim.Adam(
            list(self._biases.values()), self._lr, betas=BETAS, eps=EPS, fused=True, capturable=True
        )
        self._moments = {
            f"{name}.{key}": torch.zeros_like(getattr(weights, name))
            for name in ("encoder", "decoder")
            for key in ("exp_avg", "exp_avg_sq")
        }
        self._n_steps = torch.zeros((), dtype=torch.float64, device=device)

    def set_lr(self, lr: float) -> None:
        """The learning rate from here on."""
        self._lr.fill_(lr)

    def step(self, gradients: Gradients) -> None:
        """Change the weights, in place."""
        from sae_persona.sae.kernels import adam_of_weighted_rows

        self._n_steps += 1
        corrections = 1 - BETAS[0] ** self._n_steps, (1 - BETAS[1] ** self._n_steps).sqrt()
        rates = torch.stack([self._lr / corrections[0], 1 / corrections[1]]).float()
        terms = gradients.terms
        tokens = [term.chosen.tokens() for term in terms]
        by_latent = ByLatent.of(_joined([term.chosen.latents for term in terms]), _joined(tokens), len(gradients.b_enc))
        # The terms' rows stand below one another, and so do those of their tokens.
        starts = itertools.accumulate((len(term.grad_out) for term in terms[:-1]), initial=0)
        places = _joined([start + of_term for start, of_term in zip(starts, tokens, strict=True)])[by_latent.order]
        sums = {
            "encoder": (gradients.centred, by_latent.tokens, [term.grad_pre for term in terms]),
            "decoder": (_joined([term.grad_out for term in terms]), places, [term.chosen.values for term in terms]),
        }
        for name, (rows, indices, factors) in sums.items():
            adam_of_weighted_rows(
                getattr(self._weights, name),
                self._moments[f"{name}.exp_avg"],
                self._moments[f"{name}.exp_avg_sq"],
                rows=rows,
                indices=indices,
                weights=_joined(factors)[by_latent.order],
                first=by_latent.first,
                rates=rates,
                betas=BETAS,
                eps=EPS,
                unit_rows=name == "decoder",
            )
        _step(self._adam, self._biases, {"b_enc": gradients.b_enc, "b_dec": gradients.b_dec})

    def state(self) -> dict[str, Tensor]:
        """Moments and the number of steps."""
        steps = {f"{name}.step": self._n_steps.float() for name in ("encoder", "decoder")}
        return self._moments | steps | _state(self._adam, self._biases)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        for name, moment in self._moments.items():
            moment.copy_(state[name])
        self._n_steps.copy_(state["encoder.step"])
        _restore(self._adam, self._biases, state)
        self._adam.param_groups[0]["lr"] = self._lr  # not the copy that was restored


@torch.no_grad()
def remove_parallel(gradient: Float[Tensor, "d_sae d_in"], rows: Float[Tensor, "d_sae d_in"]) -> None:
    """Take out of each row of `gradient` what points along that unit row, which would only change the row's length."""
    gradient.sub_((gradient * rows).sum(-1, keepdim=True) * rows)


@torch.no_grad()
def normalise_rows(matrix: Float[Tensor, "d_sae d_in"]) -> None:
    """Make every row one long, in place."""
    matrix.div_(matrix.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _step(adam: torch.optim.Adam, named: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    for name, tensor in named.items():
        tensor.grad = gradients[name]
    adam.step()


def _state(adam: torch.optim.Adam, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states = adam.state_dict()["state"].values()
    return {f"{name}.{key}": tensor for name, state in zip(named, states, strict=True) for key, tensor in state.items()}


def _restore(adam: torch.optim.Adam, named: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    own = {
        i: {key: state[f"{name}.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
        for i, name in enumerate(named)
    }
    adam.load_state_dict({"state": own, "param_groups": adam.state_dict()["param_groups"]})
