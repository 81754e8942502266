"""`measure` prints and writes what `reconstruction_metrics` finds."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from sae_persona.data.stream import stream_documents
from sae_persona.data.tokens import chat_row, text_row
from sae_persona.model.load import load_model
from sae_persona.sae.load import load_sae
from sae_persona.sae.metrics import reconstruction_metrics

HOOK = "blocks.1.hook_resid_post"
Refused = Callable[..., str]


def test_what_is_written_is_measured_on_the_same_tokens(
    sae: Path, built: Path, documents: Path, cli: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "there" / "metrics.json"
    options = ["--data", documents, "--n-documents", 7, "--drop-first", 2, "--out", out]
    said = cli("measure", sae, built / "base", *options).stdout
    model = load_model(built / "base")
    rows = [
        text_row(document, model.tokenizer) if isinstance(document, str) else chat_row(document, model.tokenizer)
        for document in stream_documents(str(documents), n_documents=7)
    ]
    expected = reconstruction_metrics(load_sae(sae), model, rows, hook_name=HOOK, drop_first=2)
    written = json.loads(out.read_text())
    of = written.pop("of")
    assert of["hook_name"] == HOOK
    assert (of["n_documents"], of["drop_first"], of["max_norm"]) == (7, 2, None)
    assert written == {
        name: pytest.approx(list(value) if isinstance(value, tuple) else value, rel=1e-4)
        for name, value in asdict(expected).items()
    }
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert lines["tokens"] == f"{expected.n_tokens:,}"
    assert lines["FVE"] == f"{expected.fve:.4f}"
    assert lines["cross-entropy"].startswith(f"{expected.ce_clean:.4f} of the model, {expected.ce_spliced:.4f} spliced")
    assert lines["divergence"].endswith(f"{expected.kl_recovered:.1%} recovered")


def test_without_splicing_nothing_is_predicted(
    sae: Path, built: Path, documents: Path, cli: Callable, tmp_path: Path
) -> None:
    options = ["--data", documents, "--n-documents", 2, "--no-splice", "--max-norm", 1e9, "--out", tmp_path / "m.json"]
    said = cli("measure", sae, built / "base", *options).stdout
    assert [line.split()[0] for line in said.splitlines()] == ["tokens", "L0", "FVE", "MSE", "cosine", "dead"]
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["ce_clean"] is written["kl_spliced"] is None
    assert len(written["density"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop-first", 10_000], "Give rows of more than 10000 tokens"),
        (["--hook", "blocks.9.hook_resid_post"], "blocks 0 to "),
        (["--n-documents", 2, "--max-norm", 1e-9], "none of the 2 rows has a token that counts"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_leaves_nothing(
    options: list[object], message: str, sae: Path, built: Path, documents: Path, refused: Refused, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "metrics.json"]
    assert message in refused("measure", sae, built / "base", "--data", documents, *options, *out)
    assert os.listdir(tmp_path) == []
