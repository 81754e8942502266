"""Steered sampling against unsteered Hugging Face, TransformerLens in both forms, and sweeps against loops.

All write the same number of tokens after the same prompts from the same weights, in turn, round after round; `ratio`
is the median over rounds of our tokens per second over the rival's in the same round, `low` and `high` its extremes.
Rivals sample from the whole vocabulary, as we do. `greedy agrees` is the share of rows whose greedy tokens are those of
a rival under the same steering; Hugging Face with a hook must agree on every row. A sweep is 11 strengths of 6
directions, strength 0 shared. The last row is the resident memory after 200 sweeps less that after 20.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sae_persona.model.bridge import bridge
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import AddDirection, steer
from sae_persona.steering.sweep import Arm, SweepConfig, sweep
from sae_persona.types import Message, Prompt

WORLD = Path(__file__).parents[1] / "checkpoints/persona_world/aligned"
SHAPES = {"Llama 256 x 6": (256, 6, 4096), "Llama 512 x 8": (512, 8, 4096)}
"""Width, blocks, vocabulary."""
N_ROWS, N_PROMPT, N_NEW = 32, 16, 32
N_ROUNDS = 7
STRENGTH = 3.0
N_ARMS, STRENGTHS = 6, tuple(s / 10 for s in range(-10, 11, 2))
N_SWEPT, N_SWEPT_NEW, N_SWEEP_ROUNDS = 4, 12, 3
"""Prompts of a sweep, tokens of an answer, rounds."""
N_SWEEPS = 200
Make = Callable[[], object]


def run() -> Iterator[Mapping[str, object]]:
    cases = {name: random_llama(*shape) for name, shape in SHAPES.items()}
    cases["the committed world"] = without_end(AutoModelForCausalLM.from_pretrained(WORLD, dtype=torch.float32))
    for name, model in cases.items():
        yield from sampling(name, model)
    for name, model in cases.items():
        yield from sweeping(name, model)
    yield memory(cases["the committed world"])


def sampling(case: str, model: LoadedModel) -> Iterator[dict[str, object]]:
    """One row per rival and way of drawing."""
    ids = random_ids(model, N_ROWS)
    hook_name = f"blocks.{model.n_layers // 2}.hook_resid_post"
    edit = AddDirection(random_direction(model, 0), STRENGTH)
    ours = lambda temperature: written(model, ids, [HookedEdit(hook_name, edit)], temperature)  # noqa: E731
    rivals = generators(model, ids, hook_name, edit)
    expected = ours(0.0)
    assert torch.equal(expected, rivals["HF generate, steered"](0.0)), "Hugging Face writes other tokens"
    assert torch.equal(written(model, ids, [], 0.0), rivals["HF generate, unsteered"](0.0))
    agrees = {name: float((make(0.0) == expected).all(-1).float().mean()) for name, make in rivals.items()}
    for temperature, way in ((0.0, "greedy"), (1.0, "sampled")):
        makes = {name: (lambda make=make, t=temperature: make(t)) for name, make in rivals.items()}
        for name, found in against(lambda t=temperature: ours(t), makes, N_ROWS * N_NEW, N_ROUNDS).items():
            share = "" if "unsteered" in name else f"{agrees[name]:.0%}"
            yield {"case": f"{case}, {way}", "rival": name, **found, "greedy agrees": share}


def sweeping(case: str, model: LoadedModel) -> Iterator[dict[str, object]]:
    """One sweep against its arms and strengths one at a time, by us and by Hugging Face with hooks."""
    ids = random_ids(model, N_SWEPT)
    hook_name = f"blocks.{model.n_layers // 2}.hook_resid_post"
    directions = [random_direction(model, i) for i in range(N_ARMS)]
    edits = [AddDirection(one, STRENGTH * s) for one in directions for s in STRENGTHS]

    def fused() -> None:
        swept(model, ids, hook_name, directions)

    def one_at_a_time() -> None:
        for edit in edits:
            written(model, ids, [HookedEdit(hook_name, edit)], 1.0, n_new=N_SWEPT_NEW)

    def hugging_face() -> None:
        for edit in edits:
            with steer(model, hook_name, edit):
                model.hf.generate(ids, **hf_options(1.0, N_SWEPT_NEW))

    makes = {"our sampler, one at a time": one_at_a_time, "HF generate with hooks, one at a time": hugging_face}
    n_tokens = len(edits) * N_SWEPT * N_SWEPT_NEW
    for name, found in against(fused, makes, n_tokens, N_SWEEP_ROUNDS).items():
        yield {"case": f"{case}, sweep of {len(STRENGTHS)} x {N_ARMS}", "rival": name, **found, "greedy agrees": ""}


def memory(model: LoadedModel) -> dict[str, object]:
    """Growth of resident memory over sweeps."""
    ids, directions = random_ids(model, 1), [random_direction(model, i) for i in range(N_ARMS)]
    after_20 = 0.0
    for i in range(N_SWEEPS):
        swept(model, ids, "blocks.1.hook_resid_post", directions)
        if i == 19:
            after_20 = resident_megabytes()
    growth = resident_megabytes() - after_20
    return {"case": f"MB grown over {N_SWEEPS} sweeps", "rival": f"of {after_20:.0f} MB", "tokens/s": growth}


def against(ours: Make, rivals: Mapping[str, Make], n_tokens: int, n_rounds: int) -> dict[str, dict[str, float]]:
    """Our speed, each rival's, and the ratio of the two in the same round; the first round only warms up."""
    seconds: dict[str, list[float]] = {"": [], **{name: [] for name in rivals}}
    for _ in range(n_rounds + 1):
        for name, make in {"": ours, **rivals}.items():
            start = time.perf_counter()
            make()
            seconds[name].append(time.perf_counter() - start)
    own = seconds.pop("")[1:]
    table = {}
    for name, taken in seconds.items():
        ratios = [theirs / our for theirs, our in zip(taken[1:], own, strict=True)]
        table[name] = {
            "tokens/s": n_tokens / statistics.median(own),
            "rival tokens/s": n_tokens / statistics.median(taken[1:]),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return table


def generators(
    model: LoadedModel, ids: Int[Tensor, "row seq"], hook_name: str, edit: AddDirection
) -> dict[str, Callable[[float], Int[Tensor, "row new"]]]:
    """What each rival writes at a temperature."""
    bridged, hooked = bridge(model), hooked_transformer(model)
    delta = edit.strength * edit.unit * edit.direction.vector

    def push(resid: Tensor, **_hook: object) -> Tensor:
        return resid + delta

    def unsteered(temperature: float) -> Tensor:
        return model.hf.generate(ids, **hf_options(temperature, N_NEW))[:, N_PROMPT:]

    def steered(temperature: float) -> Tensor:
        with steer(model, hook_name, edit):
            return unsteered(temperature)

    def lens(rival: Any) -> Callable[[float], Tensor]:
        def generate(temperature: float) -> Tensor:
            with rival.hooks(fwd_hooks=[(hook_name, push)]):
                found = rival.generate(
                    ids,
                    max_new_tokens=N_NEW,
                    stop_at_eos=False,
                    do_sample=temperature > 0,
                    temperature=temperature or 1.0,
                    return_type="tokens",
                    verbose=False,
                )
            return found[:, N_PROMPT:]

        return generate

    return {
        "HF generate, unsteered": unsteered,
        "HF generate, steered": steered,
        "TransformerBridge, steered": lens(bridged),
        "HookedTransformer, steered": lens(hooked),
    }


def hf_options(temperature: float, n_new: int) -> dict[str, Any]:
    drawing = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": temperature} if temperature else {}
    return {"do_sample": False, "max_new_tokens": n_new, "pad_token_id": 0, **drawing}


def hooked_transformer(model: LoadedModel) -> Any:
    """TransformerLens's own implementation with the weights of a Llama."""
    from transformer_lens import HookedTransformer
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    llama: Any = model.hf.config
    config = HookedTransformerConfig(
        n_layers=llama.num_hidden_layers,
        d_model=llama.hidden_size,
        n_heads=llama.num_attention_heads,
        n_key_value_heads=llama.num_key_value_heads,
        d_head=llama.head_dim,
        d_mlp=llama.intermediate_size,
        d_vocab=llama.vocab_size,
        n_ctx=llama.max_position_embeddings,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        eps=llama.rms_norm_eps,
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_dim=llama.head_dim,
        rotary_base=int(llama.rope_parameters["rope_theta"]),
        rotary_adjacent_pairs=False,
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=False,
        device="cpu",
    )
    hooked = HookedTransformer(config)
    hooked.load_and_process_state_dict(
        convert_llama_weights(model.hf, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return hooked.eval().requires_grad_(False)


def written(
    model: LoadedModel,
    ids: Int[Tensor, "row seq"],
    edits: Sequence[HookedEdit],
    temperature: float,
    *,
    n_new: int | None = None,
) -> Int[Tensor, "row new"]:
    """Our sampler's tokens."""
    options: dict[str, Any] = {"n_samples": 1, "seed": 0, "max_new_tokens": n_new or N_NEW, "temperature": temperature}
    found = sample(model, as_prompts(ids), edits=edits, **options)[0]
    return torch.tensor([completion.token_ids for completion in found])


def swept(model: LoadedModel, ids: Int[Tensor, "row seq"], hook_name: str, directions: Sequence[Direction]) -> None:
    arms = [Arm(direction, STRENGTHS) for direction in directions]
    config = SweepConfig(hook_name, STRENGTH, "all", n_samples=1, max_new_tokens=N_SWEPT_NEW, seed=0)
    sweep(model, arms, as_prompts(ids), lambda _: {}, config)


def random_llama(width: int, n_blocks: int, vocabulary: int) -> LoadedModel:
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_blocks,
        num_attention_heads=width // 64,
        vocab_size=vocabulary,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return without_end(AutoModelForCausalLM.from_config(config))


def without_end(hf: Any) -> LoadedModel:
    """The model with a tokenizer whose words are its tokens, and no token that ends an answer."""
    for config in (hf.config, hf.generation_config):
        config.bos_token_id, config.eos_token_id = None, None
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(hf.config.vocab_size)}, unk_token="w0"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", chat_template=template)  # noqa: S106
    return LoadedModel("Llama", hf.eval().requires_grad_(False), tokenizer)


def random_ids(model: LoadedModel, n_rows: int) -> Int[Tensor, "row seq"]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(7, model.hf.config.vocab_size, (n_rows, N_PROMPT), generator=generator)


def as_prompts(ids: Int[Tensor, "row seq"]) -> list[Prompt]:
    texts = [" ".join(f"w{token}" for token in row) for row in ids.tolist()]
    return [Prompt(str(i), "open_ended", str(i), "f", (Message("user", text),)) for i, text in enumerate(texts)]


def random_direction(model: LoadedModel, seed: int) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(f"random {seed}", "random_direction", vector)


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
