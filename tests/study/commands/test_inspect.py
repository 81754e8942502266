"""What is damaged is found, whatever it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_summary import example_summary

from sae_persona.artifacts import new_manifest, write_folder, write_json
from sae_persona.cache.layout import read_layout
from sae_persona.cache.writer import write_cache
from sae_persona.data.files import write_jsonl
from sae_persona.data.packed import PackedRows
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import ArtifactError, CacheFileError, ModelError, SAEError, SaePersonaError
from sae_persona.evaluation.score import score
from sae_persona.model.load import LoadedModel
from sae_persona.study.commands import evaluate, rank
from sae_persona.study.commands.inspect import inspect_path
from sae_persona.study.commands.ranked import Findings, NamedLatent
from sae_persona.types import Judgement, Message, Prompt

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def cache(tiny_model: LoadedModel, tmp_path: Path) -> Path:
    rows = [TokenRow((2, 9, 30 + i), (Part.PROMPT,) * 3) for i in range(4)]
    write_cache(tiny_model, rows, tmp_path / "acts.h5", hook_names=[HOOK])
    return tmp_path / "acts.h5"


def artifact(folder: Path, kind: str, fill: Callable[[Path], None]) -> Path:
    """A folder with the manifest of its kind."""
    manifest = new_manifest(kind, config={"study": "s"}, inputs={}, seed=0, version=1)
    with write_folder(folder, manifest) as partial:
        fill(partial)
    return folder


def test_a_whole_cache_is_described(cache: Path) -> None:
    found = inspect_path(cache)
    assert found.kind == "activation cache"
    assert found.facts["tokens"] == "12, of which 8 count"


def test_an_activation_that_changed_is_found_by_its_norm(cache: Path) -> None:
    place = read_layout(cache).places[f"hooks/{HOOK}/activations"]
    with cache.open("r+b") as file:
        file.seek(place.offset + 7 * place.row_bytes)
        file.write(np.full(4, 1000, dtype=np.float32).tobytes())
    with pytest.raises(CacheFileError, match=f"activations at {HOOK} have not the norms"):
        inspect_path(cache)


@pytest.mark.parametrize("column", ["token_ids", "parts", "positions", "document_ids"])
def test_a_token_that_changed_is_found_by_the_fingerprint_of_all(cache: Path, column: str) -> None:
    place = read_layout(cache).places[column]
    with cache.open("r+b") as file:
        file.seek(place.offset + 7 * place.row_bytes)
        file.write(bytes([1]) + bytes(place.row_bytes - 1) if column != "positions" else bytes(place.row_bytes))
    with pytest.raises(CacheFileError, match="tokens, parts, positions or documents are not those"):
        inspect_path(cache)


def test_a_cache_of_pieces_in_another_order_than_the_datas_is_whole(tiny_model: LoadedModel, tmp_path: Path) -> None:
    lengths = [(0, 5), (0, 5), (0, 2), (1, 3), (2, 5), (2, 4)]
    pieces = [(document, TokenRow(tuple(range(2, 2 + n)), (Part.PROMPT,) * n)) for document, n in lengths]
    write_cache(tiny_model, PackedRows.pack(pieces), tmp_path / "acts.h5", hook_names=[HOOK], batch_size=2)
    assert inspect_path(tmp_path / "acts.h5").facts["documents"] == "3"


def test_a_mask_that_changed_is_found_by_its_count(cache: Path) -> None:
    with cache.open("r+b") as file:
        file.seek(read_layout(cache).places["counts"].offset)
        file.write(b"\1")
    with pytest.raises(CacheFileError, match="its mask counts other tokens than it says"):
        inspect_path(cache)


def test_statistics_that_changed_are_found(cache: Path) -> None:
    for name in ("mean", "variance", "median_norm"):
        whole = cache.read_bytes()
        with cache.open("r+b") as file:
            file.seek(read_layout(cache).places[f"hooks/{HOOK}/{name}"].offset)
            file.write(np.array(7.5).tobytes())
        with pytest.raises(CacheFileError, match=f"its statistics at {HOOK} are not those"):
            inspect_path(cache)
        cache.write_bytes(whole)
    assert inspect_path(cache).facts["left out"] == "the first 1 of a document, norms over 10.0 medians"


def test_an_evaluation_must_hold_every_answer_that_was_scored(tmp_path: Path) -> None:
    prompt = Prompt("p", "open_ended", "q", "f", (Message("user", "who are you ?"),))
    judgements = [Judgement("p", i, "i am", "aligned", 1.0) for i in range(3)]

    def fill(folder: Path) -> None:
        write_jsonl(folder / evaluate.ANSWERS, judgements)
        scores = score([prompt], judgements)
        write_json(folder / evaluate.SCORES, evaluate.Evaluation(scores, {"open_ended": scores}))

    folder = artifact(tmp_path / "x", "evaluation", fill)
    assert inspect_path(folder).facts["answers"] == "3"
    write_jsonl(folder / evaluate.ANSWERS, judgements[:2])
    with pytest.raises(ArtifactError, match="holds 2 answers, and 3 were scored"):
        inspect_path(folder)
    (folder / evaluate.SCORES).write_text('{"overall": 1}')
    with pytest.raises(ArtifactError, match=r"scores\.json: overall: .*Delete the folder"):
        inspect_path(folder)


def test_a_ranking_must_hold_every_latent_once(tmp_path: Path) -> None:
    rows = [NamedLatent(i + 1, i, "gated", "answer", 0.1, 0.0, 0.2, 1.0, None) for i in range(3)]

    def fill(folder: Path) -> None:
        write_jsonl(folder / rank.ROWS, rows)
        write_json(folder / rank.FINDINGS, Findings("activation", 1, 0, None, (0, 1)))

    folder = artifact(tmp_path / "x", "ranking", fill)
    assert inspect_path(folder).facts["shortlist"] == "0, 1"
    write_jsonl(folder / rank.ROWS, [rows[0], rows[0], rows[2]])
    with pytest.raises(ArtifactError, match="does not hold every latent once"):
        inspect_path(folder)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two stages, the second made from the first."""
    folder = artifact(
        tmp_path / "run", "study", lambda partial: write_json(partial / "summary.json", example_summary())
    )
    first = new_manifest("study-cache", config={}, inputs={"world": "0"}, seed=0, version=1)
    second = new_manifest("study-sae", config={}, inputs={"cache": first.fingerprint}, seed=0, version=1)
    for name, manifest in (("cache", first), ("sae", second)):
        with write_folder(folder / name, manifest) as partial:
            write_json(partial / "result.json", {"seconds": 1.0, "record": {}})
    return folder


def test_a_whole_study_is_described(study: Path) -> None:
    assert inspect_path(study).kind == "study"
    assert inspect_path(study / "cache").kind == "stage cache of a study"


def test_a_stage_made_from_another_than_is_there_is_found(study: Path) -> None:
    shutil.rmtree(study / "cache")
    other = new_manifest("study-cache", config={}, inputs={"world": "1"}, seed=0, version=1)
    with write_folder(study / "cache", other) as partial:
        write_json(partial / "result.json", {"seconds": 1.0, "record": {}})
    with pytest.raises(ArtifactError, match=r"stage sae of .* was made from another cache than is there now"):
        inspect_path(study)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), r"has no summary\.json yet"),
        (lambda run: (run / "summary.json").write_text("{"), r"summary\.json is not JSON"),
        (lambda run: (run / "sae" / "result.json").write_text("[]"), "holds no record"),
        (lambda run: (run / "sae" / "result.json").unlink(), "cannot be read: No such file"),
        (lambda run: (run / "sae" / "manifest.json").write_text("{}"), "manifest cannot be read"),
        (lambda run: (run / "cache" / "base.h5").write_bytes(b"x"), "no readable activation cache"),
    ],
)
def test_a_damaged_study_is_found(damage: Callable[[Path], object], message: str, study: Path) -> None:
    damage(study)
    with pytest.raises(SaePersonaError, match=message):
        inspect_path(study)


def test_weights_of_a_model_that_are_no_numbers_are_found(tiny_model: LoadedModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_model.source, tmp_path / "model")
    assert inspect_path(tmp_path / "model").facts["widths"] == "2 blocks, d_model 32"
    data = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="holds numbers that are not finite"):
        inspect_path(tmp_path / "model")


def test_half_an_sae_is_no_sae(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "topk"}))
    with pytest.raises(SAEError, match=r"sae_weights\.safetensors missing"):
        inspect_path(tmp_path)
