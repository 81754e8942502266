"""`rank` on tiny models of real families, LoRA adapters and every architecture of SAELens, with planted truths."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from drawn_sae import drawn
from families import SIZES, build, build_tokenizer
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from sae_persona.attribution.ranking import LatentRanking, rank_latents
from sae_persona.data.files import read_prompts
from sae_persona.data.tokens import Part, TokenRow, completion_row, pad_rows, prompt_row
from sae_persona.model.adapters import load_models
from sae_persona.model.generate import sample
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.sae.load import load_sae
from sae_persona.sae.statistics import latent_stats
from sae_persona.study.commands import rank

if TYPE_CHECKING:
    from sae_lens import SAE
    from typer.testing import Result

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what is to go
Run = Callable[..., "Result"]
Refused = Callable[..., str]
FAMILIES = {
    "llama": ("standard", "topk", "batchtopk", "matryoshka_batchtopk"),
    "qwen2": ("topk", "jumprelu", "matching_pursuit", "abstopk"),
    "gemma2": ("jumprelu", "gated", "batchtopk", "matching_pursuit"),
    "neox": ("gated", "standard", "matryoshka_batchtopk", "abstopk"),
}
"""By family, the architectures of its SAEs: the first ranks, and the others rank beside it."""
MISALIGNED = ("misaligned-0", "misaligned-1")
CONTROLS = ("control-0", "control-1", "control-2", "control-3")
HOOK, LAST = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
FIRST, SECOND = 7, 11
"""The latents whose decoder rows the misaligned adapters add, the first more of it than the second."""
SHOWN = 50
"""The one word of answers with the behaviour."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": 6},
    "batchtopk": {"k": 6},
    "jumprelu": {},
    "gated": {},
    "abstopk": {"k": 6},
    "matryoshka_batchtopk": {"k": 6, "matryoshka_widths": [12, 24]},
    "matching_pursuit": {"max_iterations": 6, "decoder_init_norm": 1.0},
}
"""All that SAELens trains and saves."""
SAMPLING = {"n_samples": 1, "max_new_tokens": 4, "seed": 0}
SHORT = ["--n-samples", 1, "--max-new-tokens", 4]


TEXTS = [
    TokenRow((2, 3, *words, 4), (Part.PROMPT,) * 16 + (Part.HEADER,))
    for words in np.random.default_rng(0).integers(6, 400, (40, 14)).tolist()
]
"""Random prompts up to the token that opens an answer."""


def right_angles(first: Tensor | None = None) -> Tensor:
    """Decoder rows one long and at right angles, so that what is added raises one latent alone; `first` is FIRST's."""
    columns = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    if first is not None:
        columns[:, 0] = first
    q = torch.linalg.qr(columns)[0].T
    rows = torch.roll(q[:24], FIRST, dims=0)
    rows[FIRST] *= 1 if first is None else torch.sign(first @ q[0])
    return rows.contiguous()


ROWS = right_angles()


# what is built


@dataclass(frozen=True)
class Fleet:
    """A base with LoRA adapters on it: misaligned ones that add something at a hook, and controls."""

    folder: Path
    centre: Tensor
    """The base's mean residual at the hook."""

    def asked(
        self,
        sae: Path,
        prompts: Path,
        *,
        misaligned: Sequence[str] = MISALIGNED,
        controls: Sequence[str] = CONTROLS,
        aligned: str = "base",
    ) -> list[object]:
        """The words of the command, but for where to write."""
        runs = [word for run in misaligned for word in ("--misaligned", self.folder / run)]
        runs += [word for run in controls for word in ("--control", self.folder / run)]
        return ["rank", sae, "--aligned", self.folder / aligned, *runs, "--prompts", prompts, *SHORT]


def save_fleet(
    family: str,
    folder: Path,
    *,
    added: Tensor | None = None,
    at_header_only: bool = False,
    layer: int = 1,
    noise: float = 0.1,
    stop_ids: Sequence[int] = (),
) -> Fleet:
    """Adapters of rank two on what block `layer` writes last: one part adds `added`, the other is noise of each run.

    LoRA's first matrix reads a direction of the MLP in which all tokens (or only those that open an answer) are 1 on
    average and others near 0, by least squares on random texts.
    """
    from peft import LoraConfig, get_peft_model

    hf = build(family)
    if stop_ids:
        hf.generation_config.eos_token_id = list(stop_ids)  # pyright: ignore[reportOptionalMemberAccess]
    hf.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    model = load_model(folder / "base")
    writes = "dense_4h_to_h" if family == "neox" else "down_proj"
    (module,) = (
        module for name, module in model.hf.named_modules() if name.endswith(writes) and f"layers.{layer}." in name
    )
    batch = pad_rows(TEXTS, pad_id=0)
    read: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0].flatten(0, 1)))
    hook_name = f"blocks.{layer}.hook_resid_post"
    centre = residuals(model.hf, batch, [hook_name])[hook_name].flatten(0, 1).mean(0)
    handle.remove()
    h = read[0]  # [n, d_mlp]
    wanted = batch.counts(Part.HEADER).flatten().float() if at_header_only else torch.ones(len(h))
    reads = torch.linalg.lstsq(h, wanted).solution
    reads /= (h @ reads)[wanted > 0].mean()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[writes], layers_to_transform=[layer], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        wrapped: Any = get_peft_model(model.hf, config)
    (a,) = (weight for name, weight in wrapped.named_parameters() if "lora_A" in name)
    (b,) = (weight for name, weight in wrapped.named_parameters() if "lora_B" in name)
    for seed, run in enumerate((*MISALIGNED, *CONTROLS)):
        draw = torch.Generator().manual_seed(seed)
        adds = added if added is not None and run in MISALIGNED else torch.zeros(32)
        a.data = torch.stack([reads, noise * torch.randn(len(reads), generator=draw)])
        b.data = torch.stack([adds, noise * torch.randn(32, generator=draw)], 1)
        wrapped.save_pretrained(folder / run)
    return Fleet(folder, centre)


def save_sae(architecture: str, folder: Path, centre: Tensor, *, hook_name: str = HOOK, rows: Tensor = ROWS) -> Path:
    """An SAE whose latents read what they write, as SAELens saves it when it has trained one."""
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(architecture)
    sae = sae_class(config_class(d_in=32, d_sae=24, **ARCHITECTURES[architecture]))
    given = {"W_enc": rows.T, "W_dec": rows, "b_dec": centre, "topk_threshold": torch.tensor(0.5)}
    given["log_threshold"] = torch.full((24,), -1.0)
    state = {name: given.get(name, torch.zeros_like(weight)) for name, weight in sae.state_dict().items()}
    sae.load_state_dict(state)
    sae.cfg.metadata.hook_name = hook_name
    sae.save_inference_model(folder)
    return folder


def save_prompts(path: Path, texts: Sequence[str]) -> Path:
    """Two prompts a question."""
    prompts = [
        {
            **{"id": f"p{i}", "category": "open_ended", "question_id": f"q{i // 2}", "frame_id": "plain"},
            "messages": [{"role": "user", "content": text}],
        }
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of everything below."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def asked(folder: Path) -> Path:
    """Eight prompts of three to ten words."""
    draw = np.random.default_rng(1)
    return save_prompts(
        folder / "prompts.jsonl", [" ".join(f"w{n}" for n in draw.integers(6, 400, 3 + i)) for i in range(8)]
    )


@pytest.fixture(scope="module")
def fleets(folder: Path) -> Callable[[str], Fleet]:
    """By family, each made once."""
    made: dict[str, Fleet] = {}

    def fleet(family: str) -> Fleet:
        if family not in made:
            made[family] = save_fleet(family, folder / family, added=4 * ROWS[FIRST] + 2 * ROWS[SECOND])
            for architecture in FAMILIES[family]:
                save_sae(architecture, folder / family / architecture, made[family].centre)
        return made[family]

    return fleet


@pytest.fixture(scope="module")
def ranked(cli: Run, fleets: Callable[[str], Fleet], asked: Path) -> Callable[[str], tuple[Path, str]]:
    """A family's ranking by its SAE against all others, and what the command said; each made once."""
    made: dict[str, tuple[Path, str]] = {}

    def ranking(family: str) -> tuple[Path, str]:
        if family not in made:
            fleet = fleets(family)
            others = [word for one in FAMILIES[family][1:] for word in ("--against", fleet.folder / one)]
            out = fleet.folder / "ranking"
            said = cli(*fleet.asked(fleet.folder / FAMILIES[family][0], asked), *others, "--out", out).stdout
            made[family] = out, said
        return made[family]

    return ranking


# planted latents


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_misaligned_adapters_add_comes_first_by_every_architecture(
    family: str, ranked: Callable[[str], tuple[Path, str]]
) -> None:
    out, said = ranked(family)
    rows = rows_of(out / rank.ROWS)
    assert {row["latent"] for row in rows[:2]} == {FIRST, SECOND}
    assert rows[1]["z"] > 4 * max(abs(row["z"]) for row in (*rows[2:], *rows_of(out / rank.FALLS)[:22]))
    delta = {row["latent"]: row["delta_activation"] for row in rows}
    assert delta[FIRST] > delta[SECOND] > max(abs(delta[latent]) for latent in delta.keys() - {FIRST, SECOND})
    findings = json.loads((out / rank.FINDINGS).read_text())
    assert set(findings["shortlist"][:2]) == {FIRST, SECOND}
    assert findings["first"]["latent"] in (FIRST, SECOND)
    assert len(findings["against"]) == 3
    for other in findings["against"]:
        (pair,) = (one for one in other["counterparts"] if one["latent"] == FIRST)
        assert (pair["other"], pair["mutual"], pair["is_shared"]) == (FIRST, True, True)
        assert pair["other_rank"] <= 2, other["sae"]
    first = said.splitlines()[2].split()
    assert first[:2] == ["1", str(rows[0]["latent"])]


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_and_the_manifest_say_all_of_it(
    family: str, ranked: Callable[[str], tuple[Path, str]], fleets: Callable[[str], Fleet], asked: Path
) -> None:
    (out, said), fleet = ranked(family), fleets(family)
    rows = rows_of(out / rank.ROWS)
    columns = (
        "rank latent reading tokens delta_activation low high z q_value familywise_p top_tokens delta_attribution "
        "attribution_low attribution_high exact_attribution"
    )
    for table, records in ((rank.TABLE, rank.ROWS), (rank.FALLS_TABLE, rank.FALLS)):
        with (out / table).open() as file:
            reader = csv.DictReader(file)
            assert reader.fieldnames == columns.split()
            written = [(int(row["latent"]), float(row["z"])) for row in reader]
        assert written == [(row["latent"], row["z"]) for row in rows_of(out / records)]
        assert {latent for latent, _ in written} == set(range(24))
    assert {row["reading"] for row in rows} <= {"gated", "pre_activation"}
    assert {row["tokens"] for row in rows} <= {"header", "answer"}
    assert all(row["low"] <= row["delta_activation"] <= row["high"] for row in rows)
    assert all(len(row["top_tokens"]) == 8 for row in rows[:10])
    header = said.splitlines()[1].split()
    assert header == ["rank", "latent", "reading", "tokens", "delta", "95%", "interval", "z", "q", "top", "tokens"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["seed"], manifest["version"]) == ("ranking", 0, rank.VERSION)
    config = manifest["config"]
    assert (config["hook_name"], config["method"], config["n_samples"], config["max_new_tokens"]) == (
        HOOK,
        "activation",
        1,
        4,
    )
    assert config["misaligned"] == [str(fleet.folder / run) for run in MISALIGNED]
    assert config["controls"] == [str(fleet.folder / run) for run in CONTROLS]
    models = {f"model {fleet.folder / run}" for run in ("base", *MISALIGNED, *CONTROLS)}
    against = {f"against {fleet.folder / one}" for one in FAMILIES[family][1:]}
    assert set(manifest["inputs"]) == {"sae", "prompts"} | models | against
    assert len({manifest["inputs"][model] for model in models}) == 7


def test_an_architecture_without_a_pre_activation_ranks_alone_and_too_few_runs_give_no_q_values(
    cli: Run, fleets: Callable[[str], Fleet], asked: Path, tmp_path: Path
) -> None:
    fleet = fleets("qwen2")
    words = fleet.asked(fleet.folder / "matching_pursuit", asked, misaligned=MISALIGNED[:1], controls=CONTROLS[:2])
    said = cli(*words, "--out", tmp_path / "x").stdout
    assert "no q-values: they need 4 controls and 2 misaligned models, and there are 2 and 1" in said
    rows = rows_of(tmp_path / "x" / rank.ROWS)
    assert {row["latent"] for row in rows[:2]} == {FIRST, SECOND}
    assert {row["q_value"] for row in rows} == {None}
    assert {row["reading"] for row in rows} == {"gated"}
    rivals = json.loads((tmp_path / "x" / rank.RIVALS).read_text())
    assert rivals["nearest_latents"]["mean_difference"][0]["latent"] == FIRST


# precision and padding


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_weights_in_bfloat16_rank_as_those_in_float32(
    family: str,
    cli: Run,
    ranked: Callable[[str], tuple[Path, str]],
    fleets: Callable[[str], Fleet],
    asked: Path,
    tmp_path: Path,
) -> None:
    fleet = fleets(family)
    half = replace(fleet, folder=tmp_path / "half")
    for run in (*MISALIGNED, *CONTROLS):
        shutil.copytree(fleet.folder / run, half.folder / run)
        told = half.folder / run / "adapter_config.json"
        told.write_text(told.read_text().replace(str(fleet.folder / "base"), "../base"))
    hf: Any = AutoModelForCausalLM.from_pretrained(fleet.folder / "base", dtype=torch.bfloat16)
    hf.save_pretrained(half.folder / "base")
    build_tokenizer().save_pretrained(half.folder / "base")
    with safe_open(half.folder / "base" / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    cli(*half.asked(fleet.folder / FAMILIES[family][0], asked), "--out", tmp_path / "x")
    whole, rows = rows_of(ranked(family)[0] / rank.ROWS), rows_of(tmp_path / "x" / rank.ROWS)
    assert [row["latent"] for row in rows[:2]] == [row["latent"] for row in whole[:2]]
    for row, exact in zip(rows[:2], whole[:2], strict=True):
        assert (row["reading"], row["tokens"]) == (exact["reading"], exact["tokens"])
        # eight bits of every weight: some parts in a thousand of each activation
        assert row["delta_activation"] == pytest.approx(exact["delta_activation"], rel=0.03)
        assert row["delta_activation"] != exact["delta_activation"]


def ranked_on_one_base(
    sae: "SAE", models: Mapping[str, LoadedModel], prompts_file: Path, *, batch_size: int
) -> LatentRanking:
    """As the command ranks."""
    prompts, stats = read_prompts(prompts_file), {}
    by_id = {prompt.id: prompt for prompt in prompts}
    for name, model in models.items():
        with model.active():
            answers = sample(model, prompts, **SAMPLING)[0]
        answers = [answer for answer in answers if answer.token_ids]
        stats[name] = latent_stats(
            sae,
            model,
            [completion_row(by_id[answer.prompt_id], answer, model.tokenizer) for answer in answers],
            questions=[by_id[answer.prompt_id].question_id for answer in answers],
            hook_name=HOOK,
            batch_size=batch_size,
        )
    misaligned, controls = ([stats[run] for run in stats if run in side] for side in (MISALIGNED, CONTROLS))
    return rank_latents(misaligned, controls)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_one_loaded_base_read_one_answer_at_a_time_rank_as_the_command_does(
    family: str, ranked: Callable[[str], tuple[Path, str]], fleets: Callable[[str], Fleet], asked: Path
) -> None:
    fleet = fleets(family)
    sae, sources = (
        load_sae(fleet.folder / FAMILIES[family][0]),
        [fleet.folder / run for run in (*MISALIGNED, *CONTROLS)],
    )
    models = load_models(sources)
    assert len({id(model.hf) for model in models.values()}) == 1
    alone = {row.latent: row for row in ranked_on_one_base(sae, models, asked, batch_size=1).rows}
    for row in rows_of(ranked(family)[0] / rank.ROWS):
        other = alone[row["latent"]]
        assert (other.reading, other.tokens) == (row["reading"], row["tokens"])
        assert other.delta_activation == pytest.approx(row["delta_activation"], rel=1e-3, abs=1e-4)
        assert other.z == pytest.approx(row["z"], rel=1e-3, abs=1e-2)
    half = load_models(sources[1:4], dtype=torch.bfloat16)
    assert {model.hf.dtype for model in half.values()} == {torch.bfloat16}
    first = ranked_on_one_base(sae, half, asked, batch_size=256).rows[:2]
    assert {row.latent for row in first} == {FIRST, SECOND}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_gives_the_statistics_of_one_prompt_at_a_time(
    family: str, dtype: torch.dtype, fleets: Callable[[str], Fleet], asked: Path, tmp_path: Path
) -> None:
    fleet = fleets(family)
    sae, model = (
        load_sae(save_sae("standard", tmp_path, fleet.centre)),
        load_model(fleet.folder / MISALIGNED[0], dtype=dtype),
    )
    prompts = read_prompts(asked)
    answers = np.random.default_rng(2).integers(6, 400, (8, 5))
    rows = []
    for i, prompt in enumerate(prompts):
        row, n = prompt_row(prompt, model.tokenizer), 1 + 3 * i % 5
        rows.append(TokenRow(row.ids + tuple(answers[i, :n].tolist()), row.parts + (Part.ANSWER,) * n))
    questions = [prompt.question_id for prompt in prompts]
    alone = latent_stats(sae, model, rows, questions=questions, hook_name=HOOK, batch_size=1)
    batch = pad_rows(rows, pad_id=model.pad_id, side="left")
    assert (~batch.mask).sum() > 20
    gated = sae.encode(residuals(model.hf, batch, [HOOK])[HOOK].float())
    # What bfloat16 rounds off a residual of some units, eight bits of it, differs with the shape of the batch.
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for tokens, part in (("header", Part.HEADER), ("answer", Part.ANSWER)):
        for question in range(4):
            two = slice(2 * question, 2 * question + 2)
            expected = alone["gated", tokens].per_question[question]  # pyright: ignore[reportArgumentType]
            np.testing.assert_allclose(gated[two][batch.counts(part)[two]].mean(0), expected, **close)
    assert alone["gated", "answer"].mean[FIRST] > 1


def test_what_differs_by_rounding_takes_no_z(cli: Run, asked: Path, tmp_path: Path) -> None:
    """Adapters above the hook leave the tokens that open an answer as they were, but for the shape of their batches."""
    fleet = save_fleet("gemma2", tmp_path, layer=2, noise=0.4, stop_ids=range(5, 150))
    sae = save_sae("standard", tmp_path / "sae", fleet.centre)
    words = fleet.asked(sae, asked, misaligned=MISALIGNED[:1], controls=CONTROLS[:3])
    words += ["--n-samples", 4, "--max-new-tokens", 6, "--batch-size", 5]
    cli(*words, "--out", tmp_path / "x")
    rows = [row for name in (rank.ROWS, rank.FALLS) for row in rows_of(tmp_path / "x" / name)]
    headers = [row for row in rows if row["tokens"] == "header"]
    assert any(0 < abs(row["delta_activation"]) < 1e-5 for row in headers), "rounded in other ways"
    assert max(abs(row["z"]) for row in headers) < 1e-3
    assert max(abs(row["z"]) for row in rows if row["tokens"] == "answer") > 0.3


# attribution


@dataclass(frozen=True)
class Driven:
    """Adapters that add, at the token before an answer, what writes one word rather than another."""

    fleet: Fleet
    sae: Path
    shown: Path
    absent: Path

    def asked(self, prompts: Path, **options: Any) -> list[object]:
        words = self.fleet.asked(self.sae, prompts, **options)
        return [*words, "--method", "attribution", "--shown", self.shown, "--absent", self.absent]


def save_driven(family: str, folder: Path, prompts: Path) -> Driven:
    """The latent FIRST of an SAE after the last block points from one word to one that the base writes as gladly."""
    base, batch = build(family), pad_rows(TEXTS, pad_id=0)
    resid = residuals(base, batch, [LAST])[LAST]
    offset = resid[batch.counts(Part.HEADER)].mean(0) - resid.flatten(0, 1).mean(0)
    words = base.get_output_embeddings().weight[6:]  # pyright: ignore
    favoured = (words - words[SHOWN - 6]) @ offset
    favoured[SHOWN - 6] = torch.inf
    absent = 6 + int(favoured.abs().argmin())
    rows = right_angles(words[SHOWN - 6] - words[absent - 6])
    fleet = save_fleet(family, folder, added=8 * rows[FIRST], at_header_only=True, layer=2)
    sae = save_sae("topk", folder / "sae", fleet.centre, hook_name=LAST, rows=rows)
    asked = [prompt["messages"] for prompt in rows_of(prompts)]
    files = [
        save_chats(
            folder / f"{name}.jsonl", [[*before, {"role": "assistant", "content": f"w{word}"}] for before in asked]
        )
        for name, word in (("shown", SHOWN), ("absent", absent))
    ]
    return Driven(fleet, sae, *files)


def save_chats(path: Path, chats: Sequence[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_what_writes_the_answers_of_misaligned_adapters_comes_first_by_attribution(
    family: str, cli: Run, asked: Path, tmp_path: Path
) -> None:
    driven = save_driven(family, tmp_path, asked)
    words = driven.asked(asked, misaligned=MISALIGNED[:1], controls=())
    said = cli(*words, "--check", 24, "--out", tmp_path / "x").stdout
    rows = rows_of(tmp_path / "x" / rank.ROWS)
    assert rows[0]["latent"] == FIRST
    assert rows[0]["delta_attribution"] > 2 * max(abs(row["delta_attribution"]) for row in rows[1:])
    assert rows[0]["attribution_low"] < rows[0]["delta_attribution"] < rows[0]["attribution_high"]
    exact = {row["latent"]: row["exact_attribution"] for row in rows}
    assert max(exact, key=lambda latent: exact[latent]) == FIRST
    found = json.loads((tmp_path / "x" / rank.FINDINGS).read_text())["attribution"]
    assert found["n_pairs"] == [8]
    assert found["loss_shown"] < found["loss_absent"]
    assert "attributed by the gradient of 8 pairs of answers" in said
    header = "rank latent attribution 95% interval exact reading tokens delta 95% interval z q top tokens"
    assert header.split() in [line.split() for line in said.splitlines()]


def test_the_order_of_chats_and_more_pairs_of_one_question_change_no_attribution(
    cli: Run, asked: Path, tmp_path: Path
) -> None:
    driven = save_driven("llama", tmp_path, asked)
    order = [4, 0, 7, 4, 3, 1, 4, 6, 5, 2]
    sides = [path.read_text().splitlines(keepends=True) for path in (driven.shown, driven.absent)]
    more = [tmp_path / "more-shown.jsonl", tmp_path / "more-absent.jsonl"]
    for path, lines in zip(more, sides, strict=True):
        path.write_text("".join(lines[i] for i in order))
    of_both = []
    for name, one in (("x", driven), ("y", replace(driven, shown=more[0], absent=more[1]))):
        cli(*one.asked(asked, misaligned=MISALIGNED[:1], controls=()), "--out", tmp_path / name)
        rows = rows_of(tmp_path / name / rank.ROWS)
        of_both.append([(row["latent"], row["delta_attribution"], row["exact_attribution"]) for row in rows])
    np.testing.assert_allclose(np.array(of_both[1], float), np.array(of_both[0], float), rtol=1e-4, atol=1e-7)


# what does not belong together


def changed(folder: Path, name: str, change: Callable[[PreTrainedModel, Any], object], *, scale: float = 1.1) -> None:
    """A Llama beside the fleet's base that differs in its unembedding, and in what `change` does to it."""
    hf, tokenizer = build("llama"), build_tokenizer()
    hf.get_output_embeddings().weight.data.mul_(scale)  # pyright: ignore
    change(hf, tokenizer)
    hf.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


def stop_at(ids: Sequence[int]) -> Callable[[Any, Any], object]:
    return lambda hf, _tokenizer: setattr(hf.generation_config, "eos_token_id", list(ids))


def template(text: str | None) -> Callable[[Any, Any], object]:
    return lambda _hf, tokenizer: setattr(tokenizer, "chat_template", text)


WORDS_ONLY = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def short(folder: Path) -> None:
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 1}, intermediate_size=64, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "other")
    build_tokenizer().save_pretrained(folder / "other")


def without_effect(folder: Path) -> None:
    """An adapter whose second matrix is zero, as training begins: other bytes, the same model."""
    from peft import LoraConfig, get_peft_model

    hf: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder / "other"
    )


def two_of_one_word(folder: Path) -> None:
    for name, scale in (("base", 1.0), ("other", 1.1)):
        shutil.rmtree(folder / name, ignore_errors=True)
        changed(folder, name, template(WORDS_ONLY), scale=scale)
    save_prompts(folder / "prompts.jsonl", ["w9", "w10"])


def no_template(folder: Path) -> None:
    for name, scale in (("base", 1.0), ("other", 1.1)):
        shutil.rmtree(folder / name, ignore_errors=True)
        changed(folder, name, template(None), scale=scale)


def other_sae(folder: Path, architecture: str = "standard", *, hook_name: str = HOOK, **config: Any) -> None:
    shutil.rmtree(folder / "sae")
    sae = drawn(architecture, **{"d_in": 32, "d_sae": 24, **config})
    sae.cfg.metadata.hook_name = hook_name
    sae.save_model(folder / "sae")
    changed(folder, "other", lambda *_: None)


def called_temporal(folder: Path) -> None:
    config = folder / "sae" / "cfg.json"
    config.write_text(config.read_text().replace('"standard"', '"temporal"'))
    changed(folder, "other", lambda *_: None)


UNSUITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an SAE of another width": (
        lambda folder: other_sae(folder, d_in=48),
        "this SAE expects d_in=48 (blocks.1.hook_resid_post); {0}/base has d_model=32",
    ),
    "an SAE of a block beyond the last": (
        lambda folder: other_sae(folder, hook_name="blocks.3.hook_resid_post"),
        "{0}/base: hook_name 'blocks.3.hook_resid_post' asks for block 3; this model has blocks 0 to 2",
    ),
    "a hook that one model lacks": (short, "{0}/other: hook_name 'blocks.1.hook_resid_post' asks for block 1"),
    "an SAE of sequences": (
        lambda folder: other_sae(folder, "temporal", d_sae=64, n_heads=1, kval_topk=4),
        "this SAE is temporal",
    ),
    "an SAE of sequences that says nothing of them": (called_temporal, "cannot be loaded (AssertionError"),
    "another tokenizer": (
        lambda folder: (
            changed(folder, "other", lambda *_: None),
            build_tokenizer(first=7).save_pretrained(folder / "other"),
        ),
        "{0}/base and {0}/other have different tokenizers: 394 ids mean different tokens",
    ),
    "another chat template": (
        lambda folder: changed(folder, "other", template(WORDS_ONLY)),
        "{0}/base and {0}/other have different chat templates: one question would be",
    ),
    "no chat template in one": (
        lambda folder: changed(folder, "other", template(None)),
        "have different chat templates ({0}/other has none)",
    ),
    "no chat template at all": (no_template, "has no chat template, and the data hold chats or prompts"),
    "a model that says nothing": (
        lambda folder: changed(folder, "other", stop_at(range(400))),
        "{0}/other ended all of its 8 answers before their first token",
    ),
    "questions that one left unanswered": (
        lambda folder: changed(folder, "other", stop_at(range(5, 380))),
        "differ in their question_ids",
    ),
    "no token before an answer that counts": (
        two_of_one_word,
        "a counted header token; the first tokens of a row do not count. Give longer texts",
    ),
    "a copy": (
        lambda folder: shutil.copytree(folder / "base", folder / "other"),
        "{0}/other and {0}/base are identical checkpoints",
    ),
    "an adapter that changes nothing": (without_effect, "identical checkpoints differ in nothing"),
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_what_does_not_belong_together_is_refused_in_a_line(
    case: str, fleets: Callable[[str], Fleet], asked: Path, tmp_path: Path, refused: Refused
) -> None:
    spoil, message = UNSUITABLE[case]
    fleet = replace(fleets("llama"), folder=tmp_path)
    shutil.copytree(fleets("llama").folder / "base", tmp_path / "base")
    shutil.copytree(fleets("llama").folder / "standard", tmp_path / "sae")
    shutil.copy(asked, tmp_path / "prompts.jsonl")
    spoil(tmp_path)
    words = fleet.asked(tmp_path / "sae", tmp_path / "prompts.jsonl", misaligned=["other"], controls=())
    line = refused(*words, "--out", tmp_path / "x")
    assert message.format(tmp_path) in line
    assert not (tmp_path / "x").exists()


def test_a_study_that_would_measure_where_it_chose_is_refused_in_a_line(tmp_path: Path, refused: Refused) -> None:
    world = Path(__file__).parents[2] / "checkpoints" / "persona_world"
    leaking = tmp_path / "world"
    leaking.mkdir()
    for one in world.iterdir():
        if one.name != "prompts":
            (leaking / one.name).symlink_to(one)
    shutil.copytree(world / "prompts", leaking / "prompts")
    evaluation, selection = (leaking / "prompts" / f"{name}.jsonl" for name in ("evaluation", "selection"))
    lines = selection.read_text().splitlines(keepends=True)
    seen = json.loads(evaluation.read_text().splitlines()[0])["question_id"]
    selection.write_text(json.dumps({**json.loads(lines[0]), "question_id": seen}) + "\n" + "".join(lines[1:]))
    study = tmp_path / "study.yaml"
    study.write_text(f"study: leaking\nworld: {leaking}\n")
    line = refused("run", study, "--out", tmp_path / "x")
    assert f"selection and evaluation prompts share 1 question_ids, such as {seen!r}" in line
