"""Is a model, and an SAE for it, fit for what the other commands will ask of them? A checklist."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae_persona.data.tokens import Part, TokenRow, chat_row, pad_rows
from sae_persona.errors import ModelError, SaePersonaError
from sae_persona.model.hooks import hook_names, residuals
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.sae.load import check_fits, check_tokens, hook_name_of, load_sae
from sae_persona.types import Chat, Message

MAX_PADDING_ERROR = 1e-3
"""Of a token's residual, relative to its norm. Rounding in float32 gives 1e-6, seeing the padding 0.1 and more."""
SHORT, LONG = 5, 17
"""Tokens of the two rows that are padded to one width."""


@dataclass(frozen=True)
class Check:
    """One line of the checklist."""

    name: str
    passed: bool
    finding: str
    """What was found, or what is wrong."""


def doctor(source: str, *, sae_source: str | None = None, device: str = "cpu", seed: int = 0) -> list[Check]:
    """Check loading, hooks, tokenizer, chat template and padding of a model, and the fit of an SAE.

    Without a model that loads there is nothing else to check. `seed` draws the tokens that are run through the model.
    """
    checks: list[Check] = []

    def check(name: str, find: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, True, find()))
        except SaePersonaError as error:
            checks.append(Check(name, False, str(error)))

    try:
        model = load_model(source, device=device)
    except SaePersonaError as error:
        return [Check("loads", False, str(error))]
    check("loads", lambda: _described(model))
    check("hooks", lambda: _hooks(model, seed))
    check("tokenizer", lambda: _tokenizer(model))
    check("chat template", lambda: _chat_template(model))
    check("padding", lambda: _padding(model, seed))
    if sae_source is not None:
        check("SAE", lambda: _sae(model, sae_source))
    return checks


def _described(model: LoadedModel) -> str:
    n_parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    kind = type(model.hf).__name__
    return f"{kind}, {n_parameters:,} parameters, {model.n_layers} blocks, d_model {model.d_model}"


def _hooks(model: LoadedModel, seed: int) -> str:
    names = hook_names(model.hf)
    batch = pad_rows([_random_row(model, LONG, seed)], pad_id=model.pad_id, device=model.device)
    broken = [name for name, resid in residuals(model.hf, batch, names).items() if not resid.isfinite().all()]
    if broken:
        raise ModelError(
            f"the residual stream is not finite from {broken[0]} on. Check the weights and their precision."
        )
    return f"{len(names)}: {', '.join(names)}" if len(names) <= 8 else f"{len(names)}: {names[0]} to {names[-1]}"


def _tokenizer(model: LoadedModel) -> str:
    tokenizer, n_embedded = model.tokenizer, _n_embedded(model)
    highest = max(tokenizer.get_vocab().values())
    if highest >= n_embedded:
        raise ModelError(
            f"the tokenizer knows token {highest}, and the model embeds 0 to {n_embedded - 1}. "
            "Use the model's own tokenizer."
        )
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer names no end token (eos_token), so no answer would ever end. Name one.")
    padding = tokenizer.pad_token or f"none, {tokenizer.eos_token} is used"
    return f"{len(tokenizer):,} tokens, end {tokenizer.eos_token}, padding {padding}"


def _chat_template(model: LoadedModel) -> str:
    if not model.tokenizer.chat_template:
        return "none: plain text only; chats and prompts need a model with a template"
    row = chat_row(Chat((Message("user", "who are you ?"), Message("assistant", "i am here to help"))), model.tokenizer)
    counts = {part: row.parts.count(part) for part in Part}
    if not counts[Part.ANSWER]:
        raise ModelError("no token of an answer is left after the chat template. Check the template and the tokenizer.")
    return ", ".join(f"{n} {part.name.lower()} tokens" for part, n in counts.items()) + " in a chat of two turns"


def _padding(model: LoadedModel, seed: int) -> str:
    short, long = _random_row(model, SHORT, seed), _random_row(model, LONG, seed + 1)
    hook_name = hook_names(model.hf)[-1]
    alone = residuals(model.hf, pad_rows([short], pad_id=model.pad_id, device=model.device), [hook_name])[hook_name][0]
    errors = []
    for side in ("right", "left"):
        batch = pad_rows([short, long], pad_id=model.pad_id, side=side, device=model.device)
        padded = residuals(model.hf, batch, [hook_name])[hook_name][0][batch.mask[0]]
        errors.append((padded - alone).norm(dim=-1) / alone.norm(dim=-1))
    worst = float(torch.cat(errors).max())
    if not worst <= MAX_PADDING_ERROR:  # nor nan
        raise ModelError(
            f"padding changes the residual stream by {worst:.1g} of its norm at {hook_name}; expected rounding alone. "
            "The architecture does not honour the attention mask: batches would give wrong numbers."
        )
    return f"a row is the same alone and padded on either side, within {worst:.0e} of its norm"


def _sae(model: LoadedModel, source: str) -> str:
    sae = load_sae(source)
    hook_name = hook_name_of(sae)
    check_fits(sae, model, hook_name)
    check_tokens(sae, model)
    return f"{sae.cfg.architecture()}, d_in {sae.cfg.d_in}, {sae.cfg.d_sae:,} latents, fits at {hook_name}"


def _random_row(model: LoadedModel, n: int, seed: int) -> TokenRow:
    ids = torch.randint(_n_embedded(model), (n,), generator=torch.Generator().manual_seed(seed))
    return TokenRow(tuple(ids.tolist()), (Part.PROMPT,) * n)


def _n_embedded(model: LoadedModel) -> int:
    return len(model.hf.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
