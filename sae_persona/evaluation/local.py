"""A local Hugging Face model as a judge: it can only reply what the rubric allows.

Nothing is sampled. The allowed replies are a tree of tokens; at every fork the model's probabilities are renormalised
over the branches, and the likeliest reply wins, as if decoding were constrained to the replies and searched to the end.

Axes: `branch` forks of the tree beyond its root, `new` tokens from the root to a fork.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from sae_persona.data.tokens import prompt_row, render
from sae_persona.errors import JudgeError
from sae_persona.evaluation.kept import Reply
from sae_persona.evaluation.model_judge import Request
from sae_persona.model.load import LoadedModel
from sae_persona.types import Message, Prompt

END = -1
"""Stands for the end of a reply among the tokens that may follow."""
Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A chat model on this machine that is asked one request after the other."""

    model: LoadedModel
    batch_size: int = 16
    """Forks of the reply tree computed at once; each holds a copy of the request's keys and values."""

    @property
    def name(self) -> str:
        """Everything that decides the replies, for people and for the names of kept replies."""
        return f"hf:{self.model.source} ({self.model.fingerprint[:12]})"

    @property
    def max_reply_tokens(self) -> int:
        """Nothing is written."""
        return 0

    def check(self) -> None:
        """A loaded model can always be asked."""

    def reply(self, requests: Sequence[Request], receive: Callable[[int, Reply], None]) -> None:
        """Call `receive` with the likeliest allowed reply to every request, in order.

        A request that does not fit into the model's context gets a reply without text.

        Raises:
            DataError: the model has no chat template.
            JudgeError: the tokenizer cannot tell two replies apart, or the logits are no numbers.
        """
        trees: dict[tuple[str, ...], _Tree] = {}
        for index, request in enumerate(requests):
            replies = request.inquiry.replies
            if replies not in trees:
                trees[replies] = self._tree(replies)
            receive(index, self._choose(request, trees[replies]))

    def reply_shares(self, request: Request) -> dict[str, float]:
        """The probability of every allowed reply; they sum to one.

        Raises:
            JudgeError: as for `reply`, or the request does not fit.
        """
        tree = self._tree(request.inquiry.replies)
        shares = self._log_shares(request, tree)
        if shares is None:
            raise JudgeError(f"the request does not fit into the context of {self.model.source!r}. Shorten the answer.")
        return {reply: float(share) for reply, share in zip(tree.replies, shares.exp(), strict=True)}

    def _choose(self, request: Request, tree: "_Tree") -> Reply:
        shares = self._log_shares(request, tree)
        if shares is None:
            return Reply(None, f"longer than the judge's context of {self.model.context} tokens")
        return Reply(tree.replies[int(shares.argmax())])

    def _log_shares(self, request: Request, tree: "_Tree") -> Float[Tensor, " reply"] | None:
        ids = prompt_row(self._prompt(request), self.model.tokenizer).ids
        if self.model.context is not None and len(ids) + tree.depth > self.model.context:
            return None
        at_fork = self._logits(ids, list(tree.forks))
        shares = torch.zeros(len(tree.replies), dtype=torch.float64)
        for fork, branches in tree.forks.items():
            weights = torch.stack([self._weight(at_fork[fork], token) for token in branches]).log_softmax(0)
            of_branch = dict(zip(branches, weights.tolist(), strict=True))
            for i, tokens in enumerate(tree.tokens):
                if tokens[: len(fork)] == fork:
                    shares[i] += of_branch[(*tokens, END)[len(fork)]]
        return shares

    @torch.no_grad()
    def _logits(self, ids: Tokens, forks: Sequence[Tokens]) -> dict[Tokens, Float[Tensor, " vocab"]]:
        """The next token's logits after the request and each fork's tokens."""
        hf, device = self.model.hf, self.model.device
        can_keep = "logits_to_keep" in inspect.signature(hf.forward).parameters
        found: dict[Tokens, Tensor] = {}
        deeper = [fork for fork in forks if fork]
        for start in range(0, max(len(deeper), 1), self.batch_size):
            some = deeper[start : start + self.batch_size]
            cache = DynamicCache(config=hf.config)
            options = {"logits_to_keep": 1} if can_keep else {}
            prompt = torch.tensor([ids], device=device)
            found[()] = self._finite(
                hf(input_ids=prompt, past_key_values=cache, use_cache=True, **options).logits[0, -1]
            )
            if some:
                cache.batch_select_indices(torch.zeros(len(some), dtype=torch.long, device=device))
                width = max(map(len, some))
                # What stands right of a fork's last token is computed and not looked at.
                rows = torch.tensor([[*fork, *[fork[-1]] * (width - len(fork))] for fork in some], device=device)
                logits = hf(input_ids=rows, past_key_values=cache, use_cache=True).logits  # [branch, new, vocab]
                for i, fork in enumerate(some):
                    found[fork] = self._finite(logits[i, len(fork) - 1])
        return found

    def _finite(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        if not bool(logits.isfinite().all()):
            raise JudgeError(f"the logits of judge {self.model.source!r} are not finite numbers. Check its weights.")
        return logits.double().cpu()

    def _weight(self, logits: Float[Tensor, " vocab"], token: int) -> Float[Tensor, ""]:
        return logits[list(self._end_ids)].logsumexp(0) if token == END else logits[token]

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        configured = getattr(self.model.hf.generation_config, "eos_token_id", None)
        several = configured if isinstance(configured, list) else [configured]
        ends = frozenset(i for i in (*several, self.model.tokenizer.eos_token_id) if isinstance(i, int))
        if not ends:
            raise JudgeError(f"{self.model.source!r} has no token that ends an answer; use a chat model as the judge.")
        return ends

    def _prompt(self, request: Request) -> Prompt:
        """The request as one message of the user, which every chat template knows.

        Control words in judged texts are split: a tokenizer would read them as the end of the message.
        """
        question, answer = (split_words(text, self._controls) for text in (request.question, request.answer))
        asked = Request(request.inquiry, question, answer)
        text = "\n\n".join(message.content for message in asked.messages)
        return Prompt("judge", "judge", "judge", "judge", (Message("user", text),))

    @cached_property
    def _controls(self) -> tuple[str, ...]:
        return control_words(self.model.tokenizer)

    def _tree(self, replies: tuple[str, ...]) -> "_Tree":
        encoded = [tuple(self.model.tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies]
        for i, tokens in enumerate(encoded):
            same = encoded.index(tokens)
            if same != i:
                raise JudgeError(
                    f"the tokenizer of judge {self.model.source!r} cannot tell the replies {replies[same]!r} and "
                    f"{replies[i]!r} apart. Use a model with a tokenizer for English."
                )
        return _Tree(replies, tuple(encoded), forks(encoded))


def control_words(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What can open or end a turn, longest first: special tokens, and words of the chat template, such as `[/INST]`."""
    template = render((Message("user", ""),), tokenizer, open_answer=True)
    words = {word for word in template.split() if re.search(r"[<\[{|#]", word)}
    added: Any = tokenizer.get_added_vocab  # a method, which the stubs take for a token
    special = {str(token) for token in (*tokenizer.all_special_tokens, *added())}
    spelt = {word for word in special if not word.isalnum()} | words
    return tuple(sorted((word for word in spelt if len(word) > 1), key=len, reverse=True))


def split_words(text: str, words: Sequence[str]) -> str:
    """`text` with a space inside each of `words`, so that a tokenizer no longer knows them."""
    for word in words:
        text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


@dataclass(frozen=True)
class _Tree:
    """Replies as tokens, and the forks between them."""

    replies: tuple[str, ...]
    tokens: tuple[Tokens, ...]
    forks: Mapping[Tokens, tuple[int, ...]]

    @property
    def depth(self) -> int:
        """Tokens from the root to the furthest fork."""
        return max(map(len, self.forks))


def forks(replies: Sequence[Tokens]) -> dict[Tokens, tuple[int, ...]]:
    """The beginnings after which replies differ, each with the tokens, or `END`, that may follow it.

    The root is always among them.
    """
    following: dict[Tokens, list[int]] = {(): []}
    for tokens in replies:
        for n in range(len(tokens) + 1):
            following.setdefault(tokens[:n], []).append((*tokens, END)[n])
    unique = {beginning: tuple(dict.fromkeys(tokens)) for beginning, tokens in following.items()}
    return {beginning: tokens for beginning, tokens in unique.items() if len(tokens) > 1 or not beginning}
