"""Sample answers in batches, with the KV cache, so that a prompt's sample does not depend on its neighbours.

Every token is the inverse of the cumulative distribution at one uniform number, and the numbers come from the seed, the
prompt's id and the sample's number alone: not from the batch, the other prompts or the edits. One sample in two
conditions meets the same luck, so that what differs between conditions is due to the conditions.

Axes: `row` answers being written, `pair` distinct (prompt, condition), `seq` positions so far, `new` written tokens.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from sae_persona.data.tokens import TokenRow, pad_rows, prompt_row
from sae_persona.errors import ConfigError, DataError, ModelError
from sae_persona.model.fan_out import can_fan_out, fan_out, n_blocks_before
from sae_persona.model.hooks import Edit, Position, edit_residual
from sae_persona.model.load import LoadedModel
from sae_persona.types import Completion, Prompt

OWN_BATCH_SHARE = 1 / 8
"""Prompts of one length get a batch of their own, without padding, if they fill this share of it; others are padded."""


@dataclass(frozen=True, eq=False)
class HookedEdit:
    """An edit of the residual stream, and where it applies."""

    hook_name: str
    edit: Edit


class _Row(NamedTuple):
    """One answer to be written; `prompt` is an index."""

    prompt: int
    condition: int
    sample: int


def sample(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    n_samples: int,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    n_conditions: int = 1,
    edits: Sequence[HookedEdit] = (),
    batch_size: int = 512,
    progress: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """`n_samples` answers to every prompt in every condition.

    Conditions share weights and noise; they differ in what the edits make of `Position.condition`. Temperature 0 is
    greedy. `progress` is called with the number of answers just finished. Other batches give the same answers, save
    where rounding in the last bit decides between two tokens.

    Returns:
        One list per condition, prompt-major: all samples of the first prompt, then all of the second.

    Raises:
        DataError: no prompts, two with one id, one without tokens, or one that leaves no room for its answer.
        ModelError: the logits are no numbers.
    """
    counts = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "n_conditions": n_conditions}
    for name, count in {**counts, "batch_size": batch_size}.items():
        if count < 1:
            raise ConfigError(f"{name} is {count}; expected 1 or more.")
    if not temperature >= 0:  # nor NaN
        raise ConfigError(f"temperature is {temperature}; expected 0 (greedy) or more.")
    tokenised = _tokenise(model, prompts, max_new_tokens)
    stop_ids = _stop_ids(model)
    written: dict[_Row, tuple[list[int], bool]] = {}
    writer = _Writer(model, stop_ids=stop_ids, temperature=temperature)
    with writer.edited(edits):
        for rows in _plan([len(row) for row in tokenised], n_conditions, n_samples, batch_size):
            uniforms = [_uniforms(seed, prompts[row.prompt].id, row.sample, max_new_tokens) for row in rows]
            tokens = writer.write(rows, tokenised, torch.from_numpy(np.stack(uniforms)))
            written.update(zip(rows, _cut(tokens, stop_ids), strict=True))
            if progress:
                progress(len(rows))

    def completion(row: _Row) -> Completion:
        ids, finished = written[row]
        answer = model.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(answer, str)
        return Completion(prompts[row.prompt].id, row.sample, answer, tuple(ids), finished)

    every = list(product(range(len(prompts)), range(n_samples)))
    return [[completion(_Row(prompt, condition, i)) for prompt, i in every] for condition in range(n_conditions)]


def draw_tokens(
    logits: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"], temperature: float
) -> Int[Tensor, " row"]:
    """The first token whose cumulative probability exceeds the row's uniform number; the likeliest at temperature 0.

    Below one in float32, a uniform number times the total rounds to less than the total, so that there always is one.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cdf = torch.softmax(logits.float() / temperature, dim=-1).cumsum(-1)
    return torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)[:, 0]


class _Writer:
    """Runs the model, and knows at every pass what its tokens are."""

    def __init__(self, model: LoadedModel, *, stop_ids: frozenset[int], temperature: float) -> None:
        self.model = model
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
        self.temperature = temperature
        # Prompts are long and the vocabulary is wide: logits of all but the last position would be wasted.
        can_keep = "logits_to_keep" in inspect.signature(model.hf.forward).parameters
        self.options = {"use_cache": True, **({"logits_to_keep": 1} if can_keep else {})}
        self.position: Position | None = None
        self.fan_at: str | None = None
        """The hook up to which a prompt is read once for all conditions; None: each reads it from the start."""

    @contextlib.contextmanager
    def edited(self, edits: Sequence[HookedEdit]) -> Iterator[None]:
        """With the edits hooked into the model."""
        hf, names = self.model.hf, {hooked.hook_name for hooked in edits}
        if can_fan_out(hf):
            # The output of a block comes before the input of the next.
            order = {name: (n_blocks_before(hf, name), name.endswith("pre")) for name in names}
            self.fan_at = min(names, key=order.__getitem__, default=None)
        with contextlib.ExitStack() as stack:
            for hooked in edits:
                hook = edit_residual(hf, hooked.hook_name, hooked.edit, position=self._position)
                stack.enter_context(hook)
            yield

    @torch.no_grad()
    def write(
        self, rows: Sequence[_Row], tokenised: Sequence[TokenRow], uniforms: Float[Tensor, "row new"]
    ) -> Int[Tensor, "row new"]:
        """The tokens of every row; whatever follows a row's first stop token means nothing."""
        device = self.model.device
        logits, cache, mask, condition = self._read(rows, tokenised)
        padded, n_read = not bool(mask.all()), mask.shape[1]
        n_rows, n_new = uniforms.shape
        noise = uniforms.T.to(device).contiguous()  # [new, row]
        tokens = torch.zeros(n_rows, n_new, dtype=torch.long, device=device)
        alive = torch.arange(n_rows, device=device)  # the rows still computed
        done = torch.zeros_like(alive, dtype=torch.bool)
        for step in range(n_new):
            self._check(logits, done)
            token = draw_tokens(logits, noise[step, alive], self.temperature)
            tokens[alive, step] = token
            done |= torch.isin(token, self.stop_ids)
            n_alive = len(done) - int(done.sum())
            if n_alive == 0 or step == n_new - 1:
                break
            if 2 * n_alive < len(done):
                keep = (~done).nonzero()[:, 0]
                cache.batch_select_indices(keep)
                alive, token, mask, condition, done = (x[keep] for x in (alive, token, mask, condition, done))
            every = torch.ones(len(token), 1, dtype=torch.bool, device=device)
            place, where = torch.full((1, 1), n_read + step, device=device), {}
            if padded:
                mask = torch.cat([mask, every], dim=1)
                place = mask.sum(-1, keepdim=True) - 1
                where = {"attention_mask": mask.long(), "position_ids": place}
            self.position = Position(every, every, every, condition, place)
            logits = self._forward(token[:, None], cache, where)
        return tokens.cpu()

    def _read(
        self, rows: Sequence[_Row], tokenised: Sequence[TokenRow]
    ) -> tuple[Float[Tensor, "row vocab"], DynamicCache, Bool[Tensor, "row seq"], Int[Tensor, " row"]]:
        """Logits after the prompt of every row, its keys and values, and which tokens and condition they are of.

        A prompt is read once in every condition, and only once up to the first edit; rows get copies.
        """
        device, hf = self.model.device, self.model.hf
        pairs = list(dict.fromkeys((row.prompt, row.condition) for row in rows))
        index = {pair: i for i, pair in enumerate(pairs)}
        pair = torch.tensor([index[row.prompt, row.condition] for row in rows], device=device)  # [row]
        condition = torch.tensor([i for _, i in pairs], device=device)  # [pair]
        to_read, source, n_shared = [i for i, _ in pairs], torch.arange(len(pairs), device=device), 0
        fan: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.fan_at is not None:
            to_read, n_shared = list(dict.fromkeys(to_read)), n_blocks_before(hf, self.fan_at)
            place = {prompt: i for i, prompt in enumerate(to_read)}
            source = torch.tensor([place[i] for i, _ in pairs], device=device)  # [pair]
            fan = fan_out(hf, self.fan_at, source, n=len(to_read))
        batch = pad_rows([tokenised[i] for i in to_read], pad_id=self.model.pad_id, side="left", device=device)
        where = {"attention_mask": batch.mask.long(), "position_ids": batch.position_ids}
        mask = batch.mask[source]  # [pair, seq]
        newest = torch.zeros_like(mask)
        newest[:, -1] = True
        self.position = Position(mask, torch.zeros_like(mask), newest, condition, batch.position_ids[source])
        cache = DynamicCache(config=hf.config)
        with fan:
            logits = self._forward(batch.ids, cache, {} if batch.mask.all() else where)
        layers: list[Any] = cache.layers
        if not all(hasattr(layer, "batch_select_indices") for layer in layers):
            raise ModelError(
                f"{self.model.source!r} keeps a state ({type(layers[0]).__name__}) whose rows cannot be copied, so no "
                "answers are sampled from it. Use a model whose blocks all have attention."
            )
        for i, layer in enumerate(layers):
            layer.batch_select_indices(source[pair] if i < n_shared else pair)
        return logits[pair], cache, mask[pair], condition[pair]

    def _forward(
        self, ids: Int[Tensor, "row seq"], cache: DynamicCache, where: dict[str, Tensor]
    ) -> Float[Tensor, "pair vocab"]:
        return self.model.hf(input_ids=ids, past_key_values=cache, **where, **self.options).logits[:, -1]

    def _check(self, logits: Float[Tensor, "row vocab"], done: Tensor) -> None:
        if not bool((logits.amax(-1).isfinite() | done).all()):
            raise ModelError(
                f"the logits of {self.model.source!r} are not finite numbers while sampling. "
                "Where an edit is hooked in, it is most likely too strong: lower its strength; else check the weights."
            )

    def _position(self) -> Position:
        assert self.position is not None
        return self.position


def _tokenise(model: LoadedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[TokenRow]:
    if not prompts:
        raise DataError("there are no prompts to answer; expected at least one.")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        twice = next(p.id for i, p in enumerate(prompts) if p.id in {q.id for q in prompts[:i]})
        raise DataError(f"prompt id {twice!r} comes twice; answers are told apart by it. Make the ids unique.")
    rows = []
    for prompt in prompts:
        if not prompt.messages:
            raise DataError(f"prompt {prompt.id!r} has no messages; expected at least a user's.")
        row = prompt_row(prompt, model.tokenizer)
        rows.append(row)
        if model.context is not None and len(row) + max_new_tokens > model.context:
            raise DataError(
                f"prompt {prompt.id!r} has {len(row)} tokens; with an answer of up to {max_new_tokens} it exceeds the "
                f"model's context of {model.context}. Shorten the prompt, or lower max_new_tokens."
            )
    return rows


def _stop_ids(model: LoadedModel) -> frozenset[int]:
    configured = getattr(model.hf.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*several, model.tokenizer.eos_token_id) if isinstance(token, int))


def _plan(lengths: Sequence[int], n_conditions: int, n_samples: int, batch_size: int) -> Iterator[list[_Row]]:
    """Batches of one prompt length, which need no padding, as far as a length has rows enough; then the others."""
    few: list[_Row] = []
    for _, prompts in groupby(sorted(range(len(lengths)), key=lambda i: lengths[i]), key=lambda i: lengths[i]):
        rows = [_Row(*row) for row in product(prompts, range(n_conditions), range(n_samples))]
        rest = len(rows) % batch_size
        n_own = len(rows) - (rest if rest < OWN_BATCH_SHARE * batch_size else 0)
        few += rows[n_own:]
        yield from _chunks(rows[:n_own], batch_size)
    yield from _chunks(few, batch_size)


def _chunks(rows: list[_Row], batch_size: int) -> Iterator[list[_Row]]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _uniforms(seed: int, prompt_id: str, sample: int, n: int) -> Float[np.ndarray, " n"]:
    """Numbers in [0, 1), a function of the arguments; a longer answer meets the same numbers at its beginning."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=sample << 64)).random(n, dtype=np.float32)


def _cut(tokens: Int[Tensor, "row new"], stop_ids: frozenset[int]) -> list[tuple[list[int], bool]]:
    """Each row's tokens before its first stop token, and whether it has one."""
    stops = torch.isin(tokens, torch.tensor(sorted(stop_ids), dtype=torch.long))
    lengths = (~stops).long().cumprod(-1).sum(-1).tolist()
    return [(row[:n], n < len(row)) for row, n in zip(tokens.tolist(), lengths, strict=True)]
