"""Writing a cache against the bare forward pass, and reading it shuffled against SAELens's cached activations.

With `--device cuda` the model is on the GPU, and what is written comes from there.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow, batches
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel

HOOK = "blocks.1.hook_resid_post"
WIDTH, CONTEXT, VOCABULARY = 512, 128, 512
N_DOCUMENTS = 96
"""Documents of a writing round."""
N_READ = 512
"""Documents of the cache that is read: 65 536 rows, twice a shuffle buffer."""
BATCH = 4096
N_ROUNDS = 5


def run(device: str = "cpu") -> Iterator[Mapping[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        yield from writing(Path(folder), device)
        yield from reading(Path(folder))


def writing(folder: Path, device: str) -> Iterator[dict[str, object]]:
    model, documents = build_model(device), random_documents(N_DOCUMENTS)

    def forward(_round: int) -> None:
        for _, batch in batches(documents, batch_size=32, pad_id=0, device=model.device):
            residuals(model.hf, batch, [HOOK])
        if device == "cuda":
            torch.cuda.synchronize()

    for dtype in ("float32", "bfloat16"):

        def write(number: int, dtype: Any = dtype) -> None:
            path = folder / f"{dtype}-{number}.h5"
            write_cache(model, documents, path, hook_names=[HOOK], batch_size=32, dtype=dtype)

        yield compared(f"write {dtype} / bare forward", write, forward, N_DOCUMENTS * CONTEXT)


def reading(folder: Path) -> Iterator[dict[str, object]]:
    for dtype in ("float32", "float16"):
        cache = write_cache(
            build_model(),
            random_documents(N_READ),
            folder / f"read-{dtype}.h5",
            hook_names=[HOOK],
            dtype=dtype,
            drop_first=0,
            norm_limit=None,
        )
        theirs = saelens_reader(cache, folder / f"saelens-{dtype}", dtype)

        def read_ours(number: int, cache: ActivationCache = cache) -> None:
            assert sum(map(len, cache.batches(HOOK, batch_size=BATCH, seed=number, n_epochs=1))) == N_READ * CONTEXT

        def read_theirs(_number: int, theirs: Iterator[torch.Tensor] = theirs) -> None:
            for _ in range(N_READ * CONTEXT // BATCH):
                next(theirs)

        yield compared(f"read {dtype} shuffled / SAELens", read_ours, read_theirs, N_READ * CONTEXT)


def saelens_reader(cache: ActivationCache, folder: Path, dtype: str) -> Iterator[torch.Tensor]:
    """SAELens's store over the same rows in the format of its own cache, with its default mixing."""
    import datasets
    from sae_lens.training.activations_store import ActivationsStore

    values = cache.read(HOOK).view(N_READ, CONTEXT, WIDTH).to(getattr(torch, dtype)).numpy()
    features = datasets.Features({HOOK: datasets.Array2D(shape=(CONTEXT, WIDTH), dtype=dtype)})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({HOOK: values}, features=features).save_to_disk(folder)
    store: Any = ActivationsStore(
        model=None,  # pyright: ignore[reportArgumentType] -- cached activations need none
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=WIDTH,
        n_batches_in_buffer=256,  # 32 768 rows, as many as we mix
        total_training_tokens=N_READ * CONTEXT,
        store_batch_size_prompts=32,
        train_batch_size_tokens=BATCH,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(folder),
    )
    return iter(store)


def compared(what: str, ours: Callable[[int], None], theirs: Callable[[int], None], n_rows: int) -> dict[str, object]:
    """Speed and the ratio of speeds, taken in turns; the first round of each only warms up."""
    seconds = [(clock(ours, number), clock(theirs, number)) for number in range(N_ROUNDS + 1)][1:]
    ratios = sorted(their / our for our, their in seconds)
    return {
        "what": what,
        "rows/s": n_rows / statistics.median(our for our, _ in seconds),
        "rival rows/s": n_rows / statistics.median(their for _, their in seconds),
        "ratio": statistics.median(ratios),
        "from": ratios[0],
        "to": ratios[-1],
    }


def clock(work: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    work(number)
    return time.perf_counter() - started


def build_model(device: str = "cpu") -> LoadedModel:
    """A random Llama of four blocks, of which two are run."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False).to(device)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))  # noqa: S106
    return LoadedModel("a random Llama", hf, PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0"))  # noqa: S106


def random_documents(n: int) -> list[TokenRow]:
    ids = torch.randint(1, VOCABULARY, (n, CONTEXT), generator=torch.Generator().manual_seed(0))
    return [TokenRow(tuple(row), (Part.PROMPT,) * CONTEXT) for row in ids.tolist()]
