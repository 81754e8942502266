"""The trainer on a GPU: it agrees with the CPU, and the CPU waits for it only where a look at the losses is due.

Tensors on the `meta` device have no values, so whatever would have to wait for one fails there: that much is tested
everywhere, and the rest where a GPU is.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.transfer import on_device
from sae_persona.sae import learner as learning
from sae_persona.sae import sparse
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner
from sae_persona.sae.train import train_sae

HOOK = "blocks.0.hook_resid_post"
SIZE: dict[str, Any] = {"d_sae": 64, "k": 4, "batch_size": 32, "n_tokens": 32 * 40, "dead_after_tokens": 32 * 4}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
architectures = pytest.mark.parametrize("architecture", ["topk", "batchtopk"])


def tokens(n_steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_steps, 32, 16, generator=generator) @ torch.randn(16, 16, generator=generator)


@architectures
@pytest.mark.parametrize("select_in", ["float32", "bfloat16"])
def test_a_step_asks_for_no_value(architecture: str, select_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(**SIZE, architecture=architecture, select_in=select_in, aux_tokens=16)
    learner = Learner.begin(16, config, torch.device("meta"))
    monkeypatch.setattr(learner.adam, "step", lambda *_: None)  # its fused kernel is for devices with memory
    monkeypatch.setattr(learner, "_dead_soon", lambda: 9)
    z = (
        Centring(torch.zeros(16, dtype=torch.float64), 1.0)
        .to(torch.device("meta"))
        .apply(torch.empty(32, 16, device="meta"))
    )
    result = learner.advance(z)
    assert result.mse.is_meta
    assert learner.step == 1


@architectures
def test_a_bound_on_the_dead_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(**SIZE, architecture=architecture, lr=1e-2)
    counted, bounded = (Learner.begin(16, config, torch.device("cpu")) for _ in range(2))
    for learner in (counted, bounded):
        learner.weights.b_enc[:20] = -9.0
    step, n_looks, n_bounded = learning.topk_step, 0, []

    def with_bound(*arguments: Any, dead: Tensor, most_dead: int | None, **options: Any) -> Any:
        bound = bounded._dead_soon()
        assert bound >= dead.sum()
        n_bounded.append(bound)
        return step(*arguments, dead=dead, most_dead=bound, **options)

    for z in tokens(40):
        expected = counted.advance(z)
        with monkeypatch.context() as patch:
            patch.setattr(learning, "topk_step", with_bound)
            found = bounded.advance(z)
        assert torch.equal(found.aux, expected.aux)
        n_looks += bounded._looked_at == bounded.step - 1
    assert n_looks == 3  # before steps 0, 16 and 32
    assert max(n_bounded) > 0
    for (_, one), (_, other) in zip(counted.weights.named(), bounded.weights.named(), strict=True):
        assert torch.equal(one, other)


def test_on_a_cpu_batches_are_handed_on_as_they_are() -> None:
    batches = list(tokens(3))
    assert all(a is b for a, b in zip(on_device(iter(batches), torch.device("cpu")), batches, strict=True))


@needs_gpu
@architectures
def test_a_gpu_learns_what_a_cpu_does(architecture: str) -> None:
    config = TrainConfig(**SIZE, architecture=architecture, lr=1e-3)
    cpu, gpu = (Learner.begin(16, config, torch.device(name)) for name in ("cpu", "cuda"))
    for learner in (cpu, gpu):
        learner.weights.b_enc[:20] = -9.0
    for z in tokens(40):
        expected, found = cpu.advance(z), gpu.advance(z.cuda())
        assert float(found.mse) == pytest.approx(float(expected.mse), rel=1e-3)  # sums in another order, grown by steps
        assert float(found.l0) == pytest.approx(float(expected.l0), rel=0.02)
    assert float(found.aux) == pytest.approx(float(expected.aux), rel=0.01)


@needs_gpu
@architectures
@pytest.mark.parametrize("select_in", ["float32", "bfloat16"])
def test_between_looks_a_step_does_not_wait_for_the_gpu(architecture: str, select_in: str) -> None:
    config = TrainConfig(**SIZE, architecture=architecture, select_in=select_in)
    learner, z = Learner.begin(16, config, torch.device("cuda")), tokens(1)[0].cuda()
    learner.advance(z)  # the first step looks, and makes the optimiser's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(learning._LOOK_EVERY - 1):
            learner.advance(z)
        with pytest.raises(RuntimeError, match="synchroniz"):
            z.sum().item()  # what waits is caught
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_batches_arrive_whole_and_in_order() -> None:
    batches = tokens(20)
    arrived = list(on_device(iter(batches), torch.device("cuda")))
    assert torch.equal(torch.stack(arrived).cpu(), batches)


@needs_gpu
def test_blocks_of_gathered_rows_give_what_all_at_once_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, matrix = tokens(1)[0].cuda(), torch.randn(64, 16, device="cuda")
    chosen = sparse.largest_of_each(rows @ matrix.T, 4)
    monkeypatch.setattr(sparse, "runs_triton", lambda _: False)
    whole = sparse.dots(chosen, rows, matrix)
    monkeypatch.setattr(sparse, "_GATHER_ENTRIES", 4 * 16 * 5)
    torch.testing.assert_close(sparse.dots(chosen, rows, matrix), whole)


@needs_gpu
@architectures
def test_training_on_a_gpu_leaves_the_sae_of_a_cpu(
    cache_of: Callable[[Tensor], ActivationCache], architecture: str
) -> None:
    cache, config = cache_of(tokens(10).flatten(0, 1)), TrainConfig(**SIZE, architecture=architecture, lr=1e-3)
    on_cpu, on_gpu = (train_sae(cache, HOOK, config, device=name) for name in ("cpu", "cuda"))
    assert on_gpu.W_dec.is_cuda
    assert ((on_gpu.W_dec.cpu() - on_cpu.W_dec).abs().amax(-1) < 0.01).float().mean() > 0.9
