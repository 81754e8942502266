"""Latent statistics and Δ-attribution against the bare passes through the model, and the memory that they take.

Widths are those of Qwen2.5-7B and of its published SAEs (131 072 latents, layer 15 of 28) divided by eight: the ratio
of the work in the model to the work in the SAE is theirs.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.cache import clock
from sae_persona.attribution.gradient import gradient_attribution
from sae_persona.attribution.loss import answer_losses
from sae_persona.attribution.pairs import CompletionPair
from sae_persona.data.tokens import Part, TokenRow, batches
from sae_persona.model.hooks import Position, Resid, edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.statistics import latent_stats

WIDTH, D_SAE, N_LAYERS = 448, 16384, 28
HOOK = "blocks.15.hook_resid_post"
N_PROMPT, N_HEADER, N_ANSWER = 32, 4, 92
"""Tokens of a question with the template's system text, of the header, and of an answer."""
N_ROWS, BATCH, N_ROUNDS = 16, 16, 3
MEMORY_PROMPTS = (100, 10_000)
WIDE = 131_072


def run() -> Iterator[Mapping[str, object]]:
    model, rows = build_model(N_LAYERS), random_rows(N_ROWS)
    for architecture in ("topk", "jumprelu"):
        sae = build_sae(architecture, D_SAE)

        def gather(_round: int, sae: Any = sae) -> None:
            latent_stats(sae, model, rows, questions=questions(N_ROWS), hook_name=HOOK, batch_size=BATCH)

        yield compared(f"{architecture} statistics / bare forward", gather, partial(forward, model, rows))
    sae = build_sae("topk", D_SAE)
    pairs = [CompletionPair("q", *both) for both in zip(rows[::2], rows[1::2], strict=True)]
    mean = torch.zeros(WIDTH)

    def attribute(_round: int) -> None:
        gradient_attribution(sae, model, pairs, hook_name=HOOK, resid_mean=mean, batch_size=BATCH)

    yield compared("attribution / forward and backward", attribute, partial(forward_backward, model, rows))
    for n_prompts in MEMORY_PROMPTS:
        yield {"what": f"peak memory, {n_prompts} prompts, 16 384 latents", "MB": peak(n_prompts, D_SAE)}
    yield {"what": "peak memory, 100 prompts, 131 072 latents", "MB": peak(100, WIDE)}


def compared(what: str, ours: Callable[[int], None], theirs: Callable[[int], None]) -> dict[str, object]:
    """Seconds of both, taken in turns, and what part of the bare speed is left; the first round only warms up."""
    seconds = [(clock(ours, i), clock(theirs, i)) for i in range(N_ROUNDS + 1)][1:]
    ratios = sorted(their / our for our, their in seconds)
    return {
        "what": what,
        "MB": "",
        "seconds": statistics.median(our for our, _ in seconds),
        "bare seconds": statistics.median(their for _, their in seconds),
        "ratio of speeds": statistics.median(ratios),
        "from": ratios[0],
        "to": ratios[-1],
    }


def forward(model: LoadedModel, rows: list[TokenRow], _round: int) -> None:
    """The model up to the hook."""
    for _, batch in batches(rows, batch_size=BATCH, pad_id=0):
        residuals(model.hf, batch, [HOOK])


def forward_backward(model: LoadedModel, rows: list[TokenRow], _round: int) -> None:
    """The whole model, and its loss's gradient at the hook."""
    for _, batch in batches(rows, batch_size=BATCH, pad_id=0):
        leaves: list[Resid] = []

        def leaf(resid: Resid, _position: Position, leaves: list[Resid] = leaves) -> Resid:
            leaves.append(resid.detach().requires_grad_())
            return leaves[0]

        with edit_residual(model.hf, HOOK, leaf):
            torch.autograd.grad(answer_losses(model, batch).sum(), leaves[0])


def peak(n_prompts: int, d_sae: int) -> float:
    """Peak resident memory in MB, above what it started from, of a process that gathers statistics over the prompts."""
    script = f"from benchmarks.attribution import gather_alone; print(gather_alone({n_prompts}, {d_sae}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def gather_alone(n_prompts: int, d_sae: int) -> float:
    """What `peak` runs: a small model, short rows, ten questions."""
    model, rows, sae = build_model(2), random_rows(n_prompts, n_answer=4, n_prompt=4), build_sae("topk", d_sae)
    # Not getrusage, whose peak a process inherits from the one that started it. 5 sets the peak back to what is held.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_resident()
    latent_stats(sae, model, rows, questions=questions(n_prompts), hook_name="blocks.0.hook_resid_post", batch_size=64)
    return peak_resident() - before


def peak_resident() -> float:
    """Most memory this process has held since the peak was set back, in MB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def questions(n: int) -> list[str]:
    return [f"question {i % 10}" for i in range(n)]


def build_model(n_layers: int) -> LoadedModel:
    """A random Qwen2."""
    config = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=18944 // 8,
        num_hidden_layers=n_layers,
        num_attention_heads=7,
        num_key_value_heads=1,
        vocab_size=152064 // 8,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"w0": 0}, unk_token="w0"))  # noqa: S106
    return LoadedModel("a random Qwen2", hf, PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0"))  # noqa: S106


def build_sae(architecture: str, d_sae: int) -> Any:
    """A random SAE of which about 64 latents fire."""
    from sae_lens import SAE

    config = {
        "architecture": architecture,
        "d_in": WIDTH,
        "d_sae": d_sae,
        **({"k": 64} if architecture == "topk" else {}),
    }
    sae = SAE.from_dict(config)
    generator = torch.Generator().manual_seed(0)
    for name, weights in sae.state_dict().items():
        weights.copy_(torch.randn(weights.shape, generator=generator) / WIDTH**0.5)
        if name == "threshold":
            weights.fill_(0.5)
    return sae.requires_grad_(False)


def random_rows(n: int, *, n_prompt: int = N_PROMPT, n_answer: int = N_ANSWER) -> list[TokenRow]:
    length = n_prompt + N_HEADER + n_answer
    ids = torch.randint(1, 200, (n, length), generator=torch.Generator().manual_seed(0))
    parts = (Part.PROMPT,) * n_prompt + (Part.HEADER,) * N_HEADER + (Part.ANSWER,) * n_answer
    return [TokenRow(tuple(row), parts) for row in ids.tolist()]
