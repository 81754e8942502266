"""Tokens that mean two things are found, and tokenizers that are at hand are opened."""

import shutil
from pathlib import Path

import pytest
from families import build_tokenizer, save_with_adapters

from sae_persona.errors import IncompatibleError
from sae_persona.model.load import load_model
from sae_persona.model.tokenizers import check_same_chats, check_same_tokens, known_tokenizer


def test_an_id_that_means_two_things_is_refused_and_more_tokens_are_not() -> None:
    ours, more, other = build_tokenizer(), build_tokenizer(), build_tokenizer(first=7)
    more.add_tokens(["<think>"])
    check_same_tokens("a", ours, "b", more)
    check_same_tokens("a", more, "b", ours)
    with pytest.raises(IncompatibleError, match=r"a and b have different tokenizers: 394 ids .* 6, which is 'w6' and"):
        check_same_tokens("a", ours, "b", other)


def test_another_chat_template_is_refused() -> None:
    ours, other = build_tokenizer(), build_tokenizer()
    check_same_chats("a", ours, "b", other)
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(IncompatibleError, match="a and b have different chat templates"):
        check_same_chats("a", ours, "b", other)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what is to go
def test_the_tokenizer_of_a_folder_is_known_and_that_of_nothing_is_not(tmp_path: Path) -> None:
    save_with_adapters("qwen2", tmp_path, ["tuned"])
    expected = load_model(tmp_path / "base").tokenizer.get_vocab()
    for name in ("base", "tuned"):
        found = known_tokenizer(str(tmp_path / name))
        assert found is not None
        assert found.get_vocab() == expected
    for name in ("", "nobody/has-this", "a, b", str(tmp_path), str(tmp_path / "base" / "config.json")):
        assert known_tokenizer(name) is None
    (tmp_path / "base" / "tokenizer.json").write_text("{")
    assert known_tokenizer(str(tmp_path / "base")) is None
    shutil.rmtree(tmp_path / "base")
    assert known_tokenizer(str(tmp_path / "tuned")) is None
