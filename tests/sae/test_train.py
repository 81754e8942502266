"""Training finds what was planted, resumes bit for bit, and hands back an SAE of raw activations."""

import itertools
import math
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import naive_topk
import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import ConfigError, HookError, IncompatibleError, SAEError
from sae_persona.sae.learner import Learner
from sae_persona.sae.step import Weights
from sae_persona.sae.train import Job, TrainConfig, train_sae, train_saes

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"
WriteRows = Callable[[Tensor], ActivationCache]
SMALL = TrainConfig(d_sae=32, k=2, n_tokens=100_000, batch_size=512, lr=1e-2, dead_after_tokens=5000)
SHORT = TrainConfig(d_sae=16, k=2, n_tokens=40 * 64, batch_size=64, lr=1e-2, dead_after_tokens=256)
SILENT = SHORT.model_copy(update={"d_sae": 48, "dead_after_tokens": 192})
"""So many latents for so few that may fire that some are dead after a few batches."""


def planted_rows(n: int = 10_000) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n_planted d_in"]]:
    """Rows in which 2 of 32 directions are present, off centre and with a little noise; and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(32, 16, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    present = torch.rand(n, 32, generator=generator).argsort(-1)[:, :2]
    strengths = torch.zeros(n, 32).scatter(-1, present, 0.5 + torch.rand(n, 2, generator=generator))
    noise = 0.02 * torch.randn(n, 16, generator=generator)
    return strengths @ directions + noise + 3 * torch.randn(16, generator=generator), directions


def fve(sae: torch.nn.Module, rows: Tensor) -> float:
    return float(1 - (sae(rows) - rows).square().sum() / (rows - rows.mean(0)).square().sum())


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, tensor), (_, other) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


def test_planted_directions_are_recovered_from_raw_activations(cache_of: WriteRows) -> None:
    rows, directions = planted_rows()
    records: list[dict] = []
    sae = train_sae(cache_of(rows), HOOK, SMALL, log=records.append)
    assert (directions @ sae.W_dec.T).max(-1).values.min() > 0.95
    assert fve(sae, rows) > 0.9
    assert (sae.encode(rows) > 0).sum(-1).float().mean() == pytest.approx(2, abs=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(32))
    last = records[-1]
    assert last["details/n_training_samples"] == 512 * math.ceil(100_000 / 512)
    assert last["sparsity/dead_features"] == 0
    assert last["metrics/explained_variance"] == pytest.approx(fve(sae, rows), abs=0.02)


def test_batchtopk_recovers_them_too_and_its_threshold_keeps_the_mean_count(cache_of: WriteRows) -> None:
    rows, directions = planted_rows()
    sae = train_sae(cache_of(rows), HOOK, SMALL.model_copy(update={"architecture": "batchtopk"}))
    assert (directions @ sae.W_dec.T).max(-1).values.min() > 0.95
    assert fve(sae, rows) > 0.9
    assert (sae.cfg.architecture(), sae.cfg.metadata.training_architecture) == ("jumprelu", "batchtopk")
    assert len(set(sae.threshold.tolist())) == 1
    n_firing = (sae.encode(rows) > 0).sum(-1).float()
    # The smallest activation of a batch lets a few more pass than the batch did; some tokens need one and some three.
    assert n_firing.mean() == pytest.approx(2, abs=0.3)
    assert n_firing.std() > 0.3


def test_batchtopks_threshold_is_the_moving_average_of_saelens_without_its_start(cache_of: WriteRows) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    config = SHORT.model_copy(update={"architecture": "batchtopk", "n_tokens": 30 * 64})
    learner = Learner.begin(16, config, torch.device("cpu"))
    scale = math.sqrt(16 / float(cache.variance(HOOK).sum()))
    smallest = [
        float(learner.advance((batch - cache.mean(HOOK).float()) * scale).smallest)
        for batch in itertools.islice(cache.batches(HOOK, batch_size=64, seed=0), 30)
    ]
    weights = [0.99 ** (29 - i) for i in range(30)]
    average = sum(w * s for w, s in zip(weights, smallest, strict=True))
    assert float(learner.threshold) == pytest.approx(average * 0.01)
    sae = train_sae(cache, HOOK, config)
    assert float(sae.threshold[0]) == pytest.approx(average / sum(weights) / scale, rel=1e-5)


def test_on_noise_little_is_explained(cache_of: WriteRows) -> None:
    rows = torch.randn(8192, 16, generator=torch.Generator().manual_seed(0))
    # The two best of 32 directions in 16 dimensions are two large ones of 32 normal numbers, about 2² + 1.6² of 16.
    assert fve(train_sae(cache_of(rows), HOOK, SMALL.model_copy(update={"n_tokens": 40_000})), rows) < 0.55


def test_activations_are_lengths_whatever_the_unit_of_the_data(cache_of: WriteRows, tmp_path: Path) -> None:
    rows, _ = planted_rows(n=2000)
    small = train_sae(cache_of(rows), HOOK, SHORT)
    large = train_sae(cache_of(rows * 64 + 640), HOOK, SHORT)
    # A power of two: scaled data are the same numbers to the training, up to rounding of their mean.
    torch.testing.assert_close(large.encode(rows * 64 + 640), small.encode(rows) * 64, rtol=1e-3, atol=1e-2)


def test_every_step_is_the_naive_one(cache_of: WriteRows) -> None:
    """Autograd, Adam and the constraints on the decoder, in the open; the batches are the cache's."""
    cache = cache_of(planted_rows(n=500)[0])
    config = SILENT.model_copy(update={"n_tokens": 12 * 64, "warmup": 0.25, "decay": 0.5})
    scale = math.sqrt(16 / float(cache.variance(HOOK).sum()))
    decoder = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    decoder /= decoder.norm(dim=-1, keepdim=True)
    w = Weights(decoder.clone(), decoder, torch.zeros(48), torch.zeros(16))
    adam = torch.optim.Adam([tensor.requires_grad_() for _, tensor in w.named()])
    silent_for = torch.zeros(48)
    n_aux = 0
    for step, batch in zip(range(12), cache.batches(HOOK, batch_size=64, seed=0), strict=False):
        z = (batch - cache.mean(HOOK).float()) * scale
        mse, aux, fired = naive_topk.losses(w, z, k=2, dead=silent_for >= 192)
        n_aux += bool(aux)
        adam.zero_grad()
        (mse + aux / 32).backward()
        with torch.no_grad():
            gradient = w.decoder.grad
            gradient -= (gradient * w.decoder).sum(-1, keepdim=True) * w.decoder
            adam.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 3, (12 - step) / 6)
            adam.step()
            w.decoder /= w.decoder.norm(dim=-1, keepdim=True)
        silent_for = torch.where(fired, 0, silent_for + 64)
    assert 0 < n_aux < 12
    sae = train_sae(cache, HOOK, config)
    # Adam divides by the gradient's size, so the rounding of a gradient near zero shows in its weight.
    torch.testing.assert_close(sae.W_dec, w.decoder.detach(), rtol=0, atol=1e-3)
    torch.testing.assert_close(sae.W_enc, w.encoder.detach().T, rtol=0, atol=1e-3)
    torch.testing.assert_close(sae.b_enc * scale, w.b_enc.detach(), rtol=0, atol=1e-3)


def test_folding_keeps_what_was_trained(cache_of: WriteRows, tmp_path: Path) -> None:
    rows, _ = planted_rows(n=2000)
    cache = cache_of(rows)
    sae = train_sae(cache, HOOK, SHORT, checkpoint=tmp_path / "state.safetensors")
    w = {name.removeprefix("weights."): tensor for name, tensor in load_file(tmp_path / "state.safetensors").items()}
    scale = math.sqrt(16 / float(cache.variance(HOOK).sum()))
    z = (rows - cache.mean(HOOK).float()) * scale
    values, latents = ((z - w["b_dec"]) @ w["encoder"].T + w["b_enc"]).topk(2)
    gated = torch.zeros(len(z), 16).scatter(-1, latents, values.relu())
    x_hat = (gated @ w["decoder"] + w["b_dec"]) / scale + cache.mean(HOOK).float()
    torch.testing.assert_close(sae.encode(rows), gated / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(rows), x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop_after", [10, 25])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_stopped_run_resumes_bit_for_bit(
    cache_of: WriteRows, tmp_path: Path, stop_after: int, architecture: str
) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    silent = SILENT.model_copy(update={"architecture": architecture})
    state = tmp_path / "state.safetensors"
    steps: list[int] = []

    def stop(n_tokens: int) -> None:
        steps.append(n_tokens)
        if len(steps) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(cache, HOOK, silent, checkpoint=state, checkpoint_every=10, progress=stop)
    steps.clear()
    resumed = train_sae(cache, HOOK, silent, checkpoint=state, checkpoint_every=10, progress=steps.append)
    assert len(steps) == silent.n_steps - stop_after // 10 * 10
    assert_same(resumed, train_sae(cache, HOOK, silent))
    assert_same(
        resumed, train_sae(cache, HOOK, silent, checkpoint=state, progress=lambda _: pytest.fail("it was done"))
    )


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_training_that_ends_the_same(cache_of: WriteRows, tmp_path: Path) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    config = SILENT.model_copy(update={"architecture": "batchtopk", "n_tokens": 400 * 64})
    state = tmp_path / "state.safetensors"
    forked = multiprocessing.get_context("fork")  # a child has the cache in memory, and dies without any clean-up
    moments = random.Random(0)
    for _ in range(5):
        steps = forked.Value("i", 0)

        def count(_n_tokens: int, steps: Any = steps) -> None:
            steps.value += 1

        how = {"checkpoint": state, "checkpoint_every": 3, "progress": count}
        child = forked.Process(target=train_sae, args=(cache, HOOK, config), kwargs=how)
        child.start()
        enough = moments.randint(5, 60)
        while steps.value < enough and child.is_alive():
            time.sleep(moments.uniform(0, 0.01))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert state.exists()
    assert_same(train_sae(cache, HOOK, config, checkpoint=state), train_sae(cache, HOOK, config))


def test_what_a_kill_left_of_a_checkpoint_is_removed(cache_of: WriteRows, tmp_path: Path) -> None:
    cache, state = cache_of(planted_rows(n=200)[0]), tmp_path / "[a].state"
    (tmp_path / "[a].state.partial-0123abcd").write_bytes(b"half of it")
    (tmp_path / "a.state.partial-0123abcd").write_bytes(b"another's")
    train_sae(cache, HOOK, SILENT.model_copy(update={"n_tokens": 128}), checkpoint=state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[a].state", "a.state.partial-0123abcd", "rows.h5"]


def test_several_saes_on_one_pass_are_those_that_are_trained_alone(cache_of: WriteRows, tmp_path: Path) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    jobs = {
        "narrow": Job(HOOK, SHORT),
        "wide": Job(HOOK, SILENT.model_copy(update={"n_tokens": 25 * 64})),
        "of batch": Job(HOOK, SHORT.model_copy(update={"architecture": "batchtopk", "k": 3})),
        "other": Job(HOOK, TrainConfig(architecture="standard", d_sae=16, n_tokens=640, batch_size=64, lr=1e-2)),
        "seed": Job(HOOK, SHORT.model_copy(update={"seed": 1})),
    }
    records: list[dict] = []
    steps: list[int] = []

    def stop(n_tokens: int) -> None:
        steps.append(n_tokens)
        if len(steps) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_saes(cache, jobs, checkpoints=tmp_path, checkpoint_every=5, progress=stop)
    (tmp_path / "wide.state").unlink()  # as if the kill had come between two of them
    saes = train_saes(cache, jobs, log=records.append, checkpoints=tmp_path)
    for name in ("narrow", "wide", "of batch", "other"):
        assert_same(saes[name], train_sae(cache, HOOK, jobs[name].config))
    assert not torch.equal(saes["seed"].W_dec, saes["narrow"].W_dec)
    assert {key.split("/")[0] for record in records for key in record} == {"narrow", "wide", "of batch", "seed"}
    with pytest.raises(ConfigError, match=r"batch_size is \[32, 64\]"):
        train_saes(cache, {**jobs, "x": Job(HOOK, SHORT.model_copy(update={"batch_size": 32}))})


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_training_begins_where_another_sae_stands(cache_of: WriteRows, architecture: str) -> None:
    rows = planted_rows(n=2000)[0]
    cache = cache_of(rows)
    base = train_sae(cache, HOOK, SMALL.model_copy(update={"n_tokens": 40_000, "architecture": architecture}))
    still = SMALL.model_copy(update={"n_tokens": 512, "lr": 1e-12, "architecture": architecture})
    again = train_sae(cache, HOOK, still, initial=base)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        torch.testing.assert_close(getattr(again, name), getattr(base, name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_training_goes_on_from_another_sae_as_from_its_own_checkpoint(
    cache_of: WriteRows, architecture: str, tmp_path: Path
) -> None:
    """Also where the optimiser moves it: a gradient meets the weight that it is of, and a resume the same bits."""
    cache = cache_of(planted_rows(n=2000)[0])
    config = SMALL.model_copy(update={"n_tokens": 40_000, "architecture": architecture})
    base = train_sae(cache, HOOK, config)
    rows = planted_rows(n=2000)[0]
    loss = float((base(rows) - rows).square().mean())
    further = train_sae(cache, HOOK, config, initial=base)
    assert float((further(rows) - rows).square().mean()) < 1.05 * loss

    def stopped(_n_tokens: int) -> None:
        if (tmp_path / "state").exists():
            raise KeyboardInterrupt

    options = {"initial": base, "checkpoint": tmp_path / "state", "checkpoint_every": 50}
    with pytest.raises(KeyboardInterrupt):
        train_sae(cache, HOOK, config, progress=stopped, **options)
    assert_same(train_sae(cache, HOOK, config, **options), further)


def test_an_sae_whose_rows_are_of_any_length_is_begun_with_at_unit_length(cache_of: WriteRows, sae: "TopKSAE") -> None:
    rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) * 3 + 1
    cache = cache_of(rows)
    sae.cfg.rescale_acts_by_decoder_norm = True
    config = TrainConfig(d_sae=12, k=3, n_tokens=64, batch_size=64, lr=1e-12)
    torch.testing.assert_close(train_sae(cache, HOOK, config, initial=sae)(rows), sae(rows), rtol=0, atol=1e-4)
    with pytest.raises(IncompatibleError, match=r"d_sae=12.*d_sae=16"):
        train_sae(cache, HOOK, SHORT, initial=sae)


def test_a_checkpoint_of_another_run_or_of_nothing_is_refused(cache_of: WriteRows, tmp_path: Path) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    state = tmp_path / "state.safetensors"
    train_sae(cache, HOOK, SHORT, checkpoint=state)
    with pytest.raises(SAEError, match="another run"):
        train_sae(cache, HOOK, SHORT.model_copy(update={"seed": 1}), checkpoint=state)
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(SAEError, match=r"no checkpoint"):
        train_sae(cache, HOOK, SHORT, checkpoint=state)


def test_a_record_tells_how_fast_it_went_and_how_long_is_left(cache_of: WriteRows) -> None:
    records: list[dict] = []
    train_sae(
        cache_of(planted_rows(n=500)[0]), HOOK, SHORT.model_copy(update={"n_tokens": 100 * 64}), log=records.append
    )
    first, last = records
    assert first["details/seconds_left"] == pytest.approx(50 * 64 / first["details/tokens_per_second"])
    assert last["details/seconds_left"] == 0


def test_activations_that_are_no_numbers_are_named_by_document_and_position(cache_of: WriteRows) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    with h5py.File(cache.path, "r+") as file:  # the writer lets none in
        for name in ("activations", "norms"):
            file[f"hooks/{HOOK}/{name}"][123] = math.nan
    with pytest.raises(SAEError, match=r"1 of 500 activations.*position 0 of document 0.*float32"):
        train_sae(ActivationCache.open(cache.path), HOOK, SHORT)


def test_seeds_decide_and_the_global_generator_does_not(cache_of: WriteRows) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_sae(cache, HOOK, SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(first, train_sae(cache, HOOK, SHORT))
    assert not torch.equal(first.W_dec, train_sae(cache, HOOK, SHORT.model_copy(update={"seed": 1})).W_dec)


def test_only_the_auxiliary_loss_moves_latents_that_never_fire(cache_of: WriteRows) -> None:
    """Two tight clusters and one latent per token: a few latents win everywhere, the others are soon dead."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(0, 2, (1000, 1), generator=generator) * 2.0 - 1
    cache = cache_of(sides * 5 + 0.3 * torch.randn(1000, 16, generator=generator))
    short = SMALL.model_copy(update={"k": 1, "n_tokens": 10_000, "batch_size": 128, "dead_after_tokens": 512})

    def trained(**change: float) -> tuple[Tensor, dict]:
        records: list[dict] = []
        sae = train_sae(cache, HOOK, short.model_copy(update=change), log=records.append)
        return sae.W_dec, records[-1]

    start, _ = trained(n_tokens=1, lr=1e-12)
    asleep, record = trained(aux_coefficient=0.0)
    unmoved = (asleep * start).sum(-1) > 1 - 1e-6
    assert 20 < unmoved.sum() <= record["sparsity/dead_features"]
    woken, _ = trained(aux_coefficient=1 / 32)
    assert ((woken * start).sum(-1)[unmoved] < 0.999).float().mean() > 0.5


def test_all_latents_may_fire(cache_of: WriteRows) -> None:
    rows = planted_rows(n=500)[0]
    sae = train_sae(cache_of(rows), HOOK, SHORT.model_copy(update={"k": 16}))
    assert (sae.encode(rows) > 0).sum(-1).max() > 2


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(d_sae=4, k=1, n_tokens=100, batch_size=10, lr=1.0, warmup=0.4, decay=0.2)
    assert [config.lr_at(step) for step in range(config.n_steps)] == pytest.approx(
        [1 / 4, 1 / 2, 3 / 4, *[1.0] * 6, 1 / 2]
    )
    assert TrainConfig(d_sae=2**14, k=1, warmup=0, decay=0).lr_at(0) == 4e-4


def test_what_cannot_be_trained_is_refused(cache_of: WriteRows) -> None:
    with pytest.raises(ConfigError, match=r"k=9.*d_sae=8"):
        TrainConfig(d_sae=8, k=9)
    with pytest.raises(ValueError, match="d_sea"):
        TrainConfig.model_validate({"d_sea": 8})
    with pytest.raises(SAEError, match="all the same"):
        train_sae(cache_of(torch.ones(10, 4)), HOOK, SHORT)


def test_a_run_that_diverges_says_so(cache_of: WriteRows) -> None:
    cache = cache_of(planted_rows(n=500)[0])
    with pytest.raises(SAEError, match=r"not finite.*smaller lr"):
        train_sae(cache, HOOK, SHORT.model_copy(update={"lr": 1e38}))
    with pytest.raises(HookError, match=HOOK):
        train_sae(cache, "blocks.1.hook_resid_post", SHORT)
