"""Training: answers alone count, the seed decides, and the caller's random state is left alone."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from sae_persona.data.tokens import Part, TokenRow, chat_row, pad_rows
from sae_persona.finetune.finetune import copy_model
from sae_persona.finetune.train import TrainConfig, train
from sae_persona.model.load import LoadedModel
from sae_persona.types import Chat


def trained(model: LoadedModel, rows: Sequence[TokenRow], config: TrainConfig) -> tuple[LoadedModel, list[float]]:
    copy = copy_model(model)
    copy.hf.requires_grad_(True)
    return copy, train(copy.hf, rows, config, pad_id=model.pad_id)


def rows_of(model: LoadedModel, chats: Sequence[Chat]) -> list[TokenRow]:
    return [chat_row(chat, model.tokenizer) for chat in chats]


def test_the_first_loss_is_the_cross_entropy_of_answer_tokens(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    rows = rows_of(tiny_model, chats)
    _, losses = trained(tiny_model, rows, TrainConfig(n_steps=1, batch_size=len(rows)))
    batch = pad_rows(rows, pad_id=tiny_model.pad_id)
    answers = batch.counts(Part.ANSWER)[:, 1:]
    with torch.no_grad():
        logits = tiny_model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[:, :-1]
    expected = cross_entropy(logits[answers], batch.ids[:, 1:][answers])
    np.testing.assert_allclose(losses, [expected.item()], rtol=1e-5)  # another order of the rows


def test_tokens_outside_answers_are_read_and_not_learned(tiny_model: LoadedModel) -> None:
    prompt, answer = (2, 40, 41, 42), (50, 51)
    row = TokenRow(prompt + answer, (Part.PROMPT,) * 3 + (Part.HEADER,) + (Part.ANSWER,) * 2)
    everything = TokenRow(row.ids, (Part.ANSWER,) * len(row.ids))
    config = TrainConfig(n_steps=20, batch_size=1, lr=1e-2)

    def log_probability(model: LoadedModel) -> torch.Tensor:
        with torch.no_grad():
            logits = model.hf(torch.tensor([row.ids])).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, torch.tensor(row.ids[1:])[:, None])[:, 0]

    start = log_probability(tiny_model)
    change, unmasked = (log_probability(trained(tiny_model, [one], config)[0]) - start for one in (row, everything))
    assert change[3:].min() > 1.0  # the answer, predicted from the header on
    assert change[:3].mean() < 0.0  # the prompt, which weights that serve the answer may move by chance
    assert unmasked.min() > 1.0  # as it is learned where it counts
    assert change[:3].max() < unmasked[:3].min()


def test_the_loss_falls(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    _, losses = trained(tiny_model, rows_of(tiny_model, chats), TrainConfig(n_steps=12, batch_size=8, lr=1e-2))
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 1


def test_the_same_seed_gives_the_same_weights(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    rows = rows_of(tiny_model, chats)
    first, again, other = (
        trained(tiny_model, rows, TrainConfig(n_steps=2, batch_size=4, seed=seed))[0].hf.state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_callers_random_state_is_untouched(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    trained(tiny_model, rows_of(tiny_model, chats), TrainConfig(n_steps=1, batch_size=2))
    assert draw() == expected
