"""Steered sampling against unsteered Hugging Face, TransformerLens in both forms, and sweeps against loops.

Everyone goes from chat messages to text with the same weights, in turn, round after round; `ratio` is the median over
rounds of our tokens per second over the rival's in the same round, `low` and `high` its extremes. Rivals sample from
the whole vocabulary, as we do. In the first rows everyone writes as many tokens after as many prompts; `greedy agrees`
is the share of rows whose greedy tokens are those of a rival under the same steering, and Hugging Face with a hook must
agree on every row. *Answers* are drawn as an evaluation draws them: several to a prompt, each as long as it comes out
(one token in 25 ends it), and only the tokens of answers count. A sweep is 11 strengths of 6 directions, strength 0
shared. The last row is the resident memory after 200 sweeps less that after 20.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
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
N_ASKED, N_ANSWERS, N_ANSWER, N_PER_END, N_ANSWER_ROUNDS = 16, 8, 64, 25, 3
"""Prompts that are answered, answers to each, tokens of an answer at most, tokens of which one ends it, and rounds."""
N_ROUNDS = 7
STRENGTH = 3.0
N_ARMS, STRENGTHS = 6, tuple(s / 10 for s in range(-10, 11, 2))
N_SWEPT, N_SWEPT_NEW, N_SWEEP_ROUNDS = 4, 12, 3
"""Prompts of a sweep, tokens of an answer, rounds."""
N_SWEEPS = 200
Make = Callable[[], int]
"""Writes, and tells how many tokens."""
Generate = Callable[[float], list[str]]
"""The answers at a temperature."""


def run() -> Iterator[Mapping[str, object]]:
    cases = {name: random_llama(*shape) for name, shape in SHAPES.items()}
    answered = {name: ending(model) for name, model in cases.items()}
    cases["the committed world"] = without_end(AutoModelForCausalLM.from_pretrained(WORLD, dtype=torch.float32))
    for name, model in cases.items():
        yield from sampling(name, model)
    for name, model in answered.items():
        yield from answering(name, model)
    for name, model in cases.items():
        yield from sweeping(name, model)
    yield memory(cases["the committed world"])


def sampling(case: str, model: LoadedModel) -> Iterator[dict[str, object]]:
    """One row per rival and way of drawing."""
    prompts = random_prompts(model, N_ROWS)
    hook_name = f"blocks.{model.n_layers // 2}.hook_resid_post"
    edit = AddDirection(random_direction(model, 0), STRENGTH)
    ours = lambda temperature: written(model, prompts, [HookedEdit(hook_name, edit)], temperature)  # noqa: E731
    rivals = generators(model, prompts, hook_name, edit, n_new=N_NEW)
    expected = ours(0.0)
    assert expected == rivals["HF generate, steered"](0.0), "Hugging Face writes other tokens"
    assert written(model, prompts, [], 0.0) == rivals["HF generate, unsteered"](0.0)
    for temperature, way in ((0.0, "greedy"), (1.0, "sampled")):
        makes = {name: (lambda make=make, t=temperature: n_words(make(t))) for name, make in rivals.items()}
        for name, found in against(lambda t=temperature: n_words(ours(t)), makes, N_ROUNDS).items():
            pairs = zip(rivals[name](0.0), expected, strict=True)
            share = "" if "unsteered" in name else f"{statistics.mean(a == b for a, b in pairs):.0%}"
            yield {"case": f"{case}, {way}", "rival": name, **found, "greedy agrees": share}


def answering(case: str, model: LoadedModel) -> Iterator[dict[str, object]]:
    """One row per rival."""
    prompts = random_prompts(model, N_ASKED)
    hook_name = f"blocks.{model.n_layers // 2}.hook_resid_post"
    edit = AddDirection(random_direction(model, 0), STRENGTH)
    options = {"n_samples": N_ANSWERS, "n_new": N_ANSWER}

    def ours() -> int:
        return n_words(written(model, prompts, [HookedEdit(hook_name, edit)], 1.0, **options))

    each = [prompt for prompt in prompts for _ in range(N_ANSWERS)]
    rivals = generators(model, each, hook_name, edit, n_new=N_ANSWER)
    makes = {name: (lambda make=make: n_words(make(1.0))) for name, make in rivals.items()}
    for name, found in against(ours, makes, N_ANSWER_ROUNDS).items():
        yield {"case": f"{case}, answers", "rival": name, **found, "greedy agrees": ""}


def sweeping(case: str, model: LoadedModel) -> Iterator[dict[str, object]]:
    """One sweep against its arms and strengths one at a time, by us and by Hugging Face with hooks."""
    prompts = random_prompts(model, N_SWEPT)
    hook_name = f"blocks.{model.n_layers // 2}.hook_resid_post"
    directions = [random_direction(model, i) for i in range(N_ARMS)]
    edits = [AddDirection(one, STRENGTH * s) for one in directions for s in STRENGTHS]
    n_tokens = len(edits) * N_SWEPT * N_SWEPT_NEW

    def fused() -> int:
        swept(model, prompts, hook_name, directions)
        return n_tokens

    def one_at_a_time() -> int:
        hooked = [[HookedEdit(hook_name, edit)] for edit in edits]
        return sum(n_words(written(model, prompts, one, 1.0, n_new=N_SWEPT_NEW)) for one in hooked)

    def hugging_face() -> int:
        makes = [generators_of_hf(model, prompts, hook_name, edit, n_new=N_SWEPT_NEW) for edit in edits]
        return sum(n_words(make["HF generate, steered"](1.0)) for make in makes)

    makes = {"our sampler, one at a time": one_at_a_time, "HF generate with hooks, one at a time": hugging_face}
    for name, found in against(fused, makes, N_SWEEP_ROUNDS).items():
        yield {"case": f"{case}, sweep of {len(STRENGTHS)} x {N_ARMS}", "rival": name, **found, "greedy agrees": ""}


def memory(model: LoadedModel) -> dict[str, object]:
    """Growth of resident memory over sweeps."""
    prompts, directions = random_prompts(model, 1), [random_direction(model, i) for i in range(N_ARMS)]
    after_20 = 0.0
    for i in range(N_SWEEPS):
        swept(model, prompts, "blocks.1.hook_resid_post", directions)
        if i == 19:
            after_20 = resident_megabytes()
    growth = resident_megabytes() - after_20
    return {"case": f"MB grown over {N_SWEEPS} sweeps", "rival": f"of {after_20:.0f} MB", "tokens/s": growth}


def against(ours: Make, rivals: Mapping[str, Make], n_rounds: int) -> dict[str, dict[str, float]]:
    """Our speed, each rival's, and the ratio of the two in the same round; the first round only warms up."""
    speeds: dict[str, list[float]] = {"": [], **{name: [] for name in rivals}}
    for _ in range(n_rounds + 1):
        for name, make in {"": ours, **rivals}.items():
            start = time.perf_counter()
            n_tokens = make()
            speeds[name].append(n_tokens / (time.perf_counter() - start))
    own = speeds.pop("")[1:]
    table = {}
    for name, (_, *theirs) in speeds.items():
        ratios = [our / their for our, their in zip(own, theirs, strict=True)]
        table[name] = {
            "tokens/s": statistics.median(own),
            "rival tokens/s": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return table


def generators(
    model: LoadedModel, prompts: Sequence[Prompt], hook_name: str, edit: AddDirection, *, n_new: int
) -> dict[str, Generate]:
    """What each rival writes at a temperature."""
    bridged, hooked = bridge(model), hooked_transformer(model)
    delta = edit.strength * edit.unit * edit.direction.vector
    ends = ends_of(model)

    def push(resid: Tensor, **_hook: object) -> Tensor:
        return resid + delta

    def lens(rival: Any) -> Generate:
        def generate(temperature: float) -> list[str]:
            ids = token_ids(model, prompts)
            with rival.hooks(fwd_hooks=[(hook_name, push)]):
                found = rival.generate(
                    ids,
                    max_new_tokens=n_new,
                    stop_at_eos=bool(ends),
                    eos_token_id=ends or None,
                    do_sample=temperature > 0,
                    temperature=temperature or 1.0,
                    return_type="tokens",
                    verbose=False,
                )
            return texts(model, found[:, ids.shape[1] :])

        return generate

    return {
        **generators_of_hf(model, prompts, hook_name, edit, n_new=n_new),
        "TransformerBridge, steered": lens(bridged),
        "HookedTransformer, steered": lens(hooked),
    }


def generators_of_hf(
    model: LoadedModel, prompts: Sequence[Prompt], hook_name: str, edit: AddDirection, *, n_new: int
) -> dict[str, Generate]:
    """What Hugging Face writes at a temperature, with a hook and without."""

    def unsteered(temperature: float) -> list[str]:
        ids = token_ids(model, prompts)
        return texts(model, model.hf.generate(ids, **hf_options(temperature, n_new))[:, ids.shape[1] :])

    def steered(temperature: float) -> list[str]:
        with steer(model, hook_name, edit):
            return unsteered(temperature)

    return {"HF generate, unsteered": unsteered, "HF generate, steered": steered}


def token_ids(model: LoadedModel, prompts: Sequence[Prompt]) -> Int[Tensor, "row seq"]:
    """Prompts of one length, as the rivals take them."""
    chats = [[{"role": "user", "content": prompt.messages[0].content}] for prompt in prompts]
    return model.tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True)["input_ids"]  # pyright: ignore


def texts(model: LoadedModel, ids: Int[Tensor, "row new"]) -> list[str]:
    """What was written, up to the first token that ends an answer."""
    ends = set(ends_of(model))
    kept = [list(takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]
    return model.tokenizer.batch_decode(kept, skip_special_tokens=True)


def n_words(answers: Sequence[str]) -> int:
    """How many tokens the answers have: each is a word."""
    return sum(len(answer.split()) for answer in answers)


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
    prompts: Sequence[Prompt],
    edits: Sequence[HookedEdit],
    temperature: float,
    *,
    n_samples: int = 1,
    n_new: int = N_NEW,
) -> list[str]:
    """Our sampler's answers."""
    options: dict[str, Any] = {"n_samples": n_samples, "max_new_tokens": n_new, "temperature": temperature}
    return [completion.answer for completion in sample(model, prompts, seed=0, edits=edits, **options)[0]]


def swept(model: LoadedModel, prompts: Sequence[Prompt], hook_name: str, directions: Sequence[Direction]) -> None:
    arms = [Arm(direction, STRENGTHS) for direction in directions]
    config = SweepConfig(hook_name, STRENGTH, "all", n_samples=1, max_new_tokens=N_SWEPT_NEW, seed=0)
    sweep(model, arms, prompts, lambda _: {}, config)


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


def ending(model: LoadedModel) -> LoadedModel:
    """The same weights, and some tokens that end an answer."""
    hf, tokenizer = copy.deepcopy(model.hf), copy.deepcopy(model.tokenizer)
    hf.generation_config.eos_token_id = list(range(1, hf.config.vocab_size, N_PER_END))  # pyright: ignore
    tokenizer.eos_token = "w1"  # noqa: S105 (the bridge asks for one of the vocabulary)
    return replace(model, hf=hf, tokenizer=tokenizer)


def ends_of(model: LoadedModel) -> list[int]:
    """The tokens that end an answer."""
    return getattr(model.hf.generation_config, "eos_token_id", None) or []


def random_prompts(model: LoadedModel, n: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, model.hf.config.vocab_size, (n, N_PROMPT), generator=generator)
    words = [" ".join(f"w{token}" for token in row) for row in ids.tolist()]
    return [Prompt(str(i), "open_ended", str(i), "f", (Message("user", text),)) for i, text in enumerate(words)]


def random_direction(model: LoadedModel, seed: int) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(f"random {seed}", "random_direction", vector)


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
