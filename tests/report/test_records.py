"""The optional records beside a summary: grouped, and refused by line."""

import pytest

from sae_persona.errors import ArtifactError
from sae_persona.report.records import read_records


def test_records_are_grouped_in_the_order_of_their_file(tmp_path):
    (tmp_path / "contexts.jsonl").write_text(
        '{"latent": 7, "tokens": ["a", "b"], "activations": [0, 1.5]}\n'
        '{"latent": 3, "tokens": ["c"], "activations": [2]}\n'
        '{"latent": 7, "tokens": ["d"], "activations": [1]}\n'
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "answers.jsonl").write_text(
        '{"model": "base", "prompt_id": "open-1-0", "answer": "a .", "label": "aligned", "score": 1.0}\n'
    )
    records = read_records(tmp_path)
    assert [context.tokens for context in records.contexts[7]] == [["a", "b"], ["d"]]
    assert list(records.contexts) == [7, 3]
    assert records.answers["base"][0].answer == "a ."


def test_records_are_optional(tmp_path):
    records = read_records(tmp_path)
    assert (records.contexts, records.answers) == ({}, {})


def test_a_bad_line_is_named(tmp_path):
    good = '{"model": "m", "prompt_id": "p", "answer": "a", "label": "aligned"}\n'
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "answers.jsonl").write_text(good + good.replace('"aligned"', '"wicked"'))
    with pytest.raises(ArtifactError, match=r"answers\.jsonl, line 2: label"):
        read_records(tmp_path)
