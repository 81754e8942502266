"""`read`: a card on the terminal, a page, and files for other programs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]


def test_a_latent_is_read(cli: Callable, sae: Path, built: Path, documents: Path, acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "reading"
    options = ["--model", built / "base", "--latent", 3, "--data", documents, "--against", acts, "--n", 4]
    said = cli("read", sae, *options, "--export", "neuronpedia", "--out", out).stdout
    assert "latent 3" in said
    assert "promotes: " in said
    assert "fires more than in the other text: 0.000 points" in said, "the cache holds the same documents"
    page = (out / "contexts.html").read_text()
    assert "Latent 3" in page
    assert "<script" not in page
    assert "difference: +0.000% [" in page
    records = [json.loads(line) for line in (out / "contexts.jsonl").read_text().splitlines()]
    assert all(len(one["tokens"]) == len(one["activations"]) for one in records)
    assert len([one for one in records if (one["text"], one["group"]) == ("data", "top")]) <= 4
    assert json.loads((out / "latents.json").read_text())[0]["latent"] == 3
    assert (out / "neuronpedia" / "batch-0.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--latent": "64"}, "latent 64 is not in this SAE, whose latents are 0 to 63"),
        ({"--data": "none.jsonl"}, "none.jsonl cannot be read"),
        ({"--data": "none.h5"}, "none.h5"),
        ({"--model": "none"}, "'none'"),
        ({"--export": "csv"}, "export 'csv' is none of neuronpedia, delphi"),
        ({"--explain": "gpt"}, "chat client 'gpt' has no known form; expected openai:MODEL[@BASE_URL] or hf:PATH"),
        ({"--hook": "blocks.9.hook_resid_post"}, "this model has blocks 0 to 1"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    change: dict[str, str], message: str, sae: Path, built: Path, documents: Path, tmp_path: Path, refused: Refused
) -> None:
    options = {"--model": built / "base", "--latent": 3, "--data": documents, "--out": tmp_path / "x"} | change
    assert message in refused("read", sae, *(word for pair in options.items() for word in pair))
    assert list(tmp_path.iterdir()) == []
