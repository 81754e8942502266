"""Documents from files and from data sets, one at a time."""

import json
from pathlib import Path

import pytest

from sae_persona.data.stream import stream_documents
from sae_persona.errors import ConfigError, DataError
from sae_persona.types import Chat


def dataset(folder: Path, **splits: list[dict[str, object]]) -> Path:
    """A folder that the datasets library takes for a data set."""
    folder.mkdir()
    for name, records in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_dataset_is_streamed_split_by_split(tmp_path: Path) -> None:
    texts = dataset(tmp_path / "texts", train=[{"text": f"document {i}"} for i in range(3)], test=[{"text": "last"}])
    assert list(stream_documents(f"hf:{texts}")) == ["document 0", "document 1", "document 2"]
    assert list(stream_documents(f"hf:{texts}:train", n_documents=2)) == ["document 0", "document 1"]
    assert list(stream_documents(f"hf:{texts}:test")) == ["last"]
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    (chat,) = stream_documents(f"hf:{dataset(tmp_path / 'chats', train=[{'messages': turns}])}")
    assert isinstance(chat, Chat)
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    with pytest.raises(DataError, match=r"cannot be streamed \(ValueError: Bad split: dev"):
        next(stream_documents(f"hf:{texts}:dev"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_no_dataset_or_holds_other_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be streamed"):
        next(stream_documents(f"hf:{tmp_path / 'none'}"))
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="train record 0: no text"):
        next(stream_documents(f"hf:{tmp_path}"))


def test_a_file_is_read_no_further_than_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\nnot JSON\n')
    assert list(stream_documents(str(tmp_path / "a.jsonl"), n_documents=2)) == ["one", "two"]
    with pytest.raises(DataError, match="line 3: not JSON"):
        list(stream_documents(str(tmp_path / "a.jsonl")))
    with pytest.raises(ConfigError, match="n_documents=0"):
        stream_documents(str(tmp_path / "a.jsonl"), n_documents=0)
