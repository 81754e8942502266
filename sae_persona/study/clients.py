"""A chat client from its name on the command line: `openai:MODEL[@BASE_URL]` or `hf:PATH`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_persona.errors import JudgeError
from sae_persona.evaluation.endpoint import KEY, OPENAI_URL, Endpoint, import_openai
from sae_persona.evaluation.local import control_words, split_words
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.types import ChatClient, Message, Prompt

FORMS = "openai:MODEL[@BASE_URL] or hf:PATH"
LONGEST = 200
"""Tokens of a local model's answer: more than an explanation of two sentences takes."""


@dataclass(frozen=True, eq=False)
class EndpointClient:
    """A model behind `POST BASE_URL/chat/completions`."""

    client: Any
    model: str

    def complete(self, messages: Sequence[Message]) -> str:
        """The answer to `messages`.

        Raises:
            JudgeError: the endpoint does not answer.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            answer = self.client.chat.completions.create(model=self.model, messages=turns)
        except import_openai().OpenAIError as error:
            raise JudgeError(
                f"{self.model} at {self.client.base_url} does not answer ({type(error).__name__}). "
                "Check the URL, the key and the model's name."
            ) from error
        return (answer.choices[0].message.content or "") if answer.choices else ""


@dataclass(frozen=True, eq=False)
class LocalClient:
    """A chat model on this machine, decoded greedily."""

    model: LoadedModel

    def complete(self, messages: Sequence[Message]) -> str:
        """The answer to `messages`, which are put into one of the user's: every chat template knows those.

        Raises:
            DataError: the model has no chat template, or the messages do not fit into its context.
        """
        whole = "\n\n".join(message.content for message in messages)
        text = split_words(whole, control_words(self.model.tokenizer))  # they would be read as the end of the message
        prompt = Prompt("client", "client", "client", "client", (Message("user", text),))
        return sample(self.model, [prompt], n_samples=1, seed=0, max_new_tokens=LONGEST, temperature=0)[0][0].answer


def build_client(spec: str, *, device: str = "cpu") -> ChatClient:
    """The client that `spec` names.

    Raises:
        JudgeError: `spec` has none of the forms, openai is not installed, or there is no key.
        ModelError: `hf:PATH` names no model.
    """
    kind, _, target = spec.partition(":")
    if kind not in ("openai", "hf") or not target.strip():
        raise JudgeError(f"chat client {spec!r} has no known form; expected {FORMS}.")
    if kind == "hf":
        return LocalClient(load_model(target, device=device))
    found = re.fullmatch(r"(?P<model>.+?)(?:@(?P<url>https?://.*))?", target)
    assert found is not None
    endpoint = Endpoint(found["model"], (found["url"] or OPENAI_URL).rstrip("/"))  # checks the URL
    ours = endpoint.base_url == OPENAI_URL
    key = os.environ.get(KEY) or (os.environ.get("OPENAI_API_KEY") if ours else None)
    if not key and ours:
        raise JudgeError(f"{OPENAI_URL} needs a key, and neither {KEY} nor OPENAI_API_KEY is set. Set one.")
    client = import_openai().OpenAI(api_key=key or "unused", base_url=endpoint.base_url)
    return EndpointClient(client, endpoint.model)
