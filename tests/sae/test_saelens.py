"""SAELens's own trainer on our cache: every architecture that it can train, saved, loaded and resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_persona.artifacts import new_manifest
from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import ConfigError
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.load import load_sae, save_sae
from sae_persona.sae.saelens import SAELensLearner
from sae_persona.sae.train import train_sae

HOOK = "blocks.0.hook_resid_post"
WriteRows = Callable[[Tensor], ActivationCache]
OPTIONS: dict[str, dict] = {
    "standard": {"l1_coefficient": 0.1, "l1_warm_up_steps": 10},
    "jumprelu": {"l0_coefficient": 0.1, "l0_warm_up_steps": 10},
    "gated": {"l1_coefficient": 0.1},
    "matryoshka_batchtopk": {"matryoshka_widths": [8, 24]},
    "matching_pursuit": {"max_iterations": 3},
    "abstopk": {},
}


def config(architecture: str, **change: object) -> TrainConfig:
    given = {"d_sae": 24, "k": 3, "n_tokens": 30 * 64, "batch_size": 64, "lr": 1e-2, "dead_after_tokens": 256}
    return TrainConfig.model_validate(
        {"architecture": architecture, "options": OPTIONS.get(architecture, {}), **given, **change}
    )


def rows(n: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 5


def test_every_architecture_of_saelens_is_covered() -> None:
    import sae_lens  # noqa: F401
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    assert set(OPTIONS) | {"topk", "batchtopk"} == set(SAE_TRAINING_CLASS_REGISTRY)


@pytest.mark.parametrize("architecture", OPTIONS)
def test_each_is_trained_saved_and_loaded_by_saelens_to_the_same_numbers(
    cache_of: WriteRows, tmp_path: Path, architecture: str
) -> None:
    from sae_lens import SAE

    cache, x = cache_of(rows()), rows()[:50]
    records: list[dict] = []
    sae = train_sae(cache, HOOK, config(architecture), log=records.append)
    # The reconstruction of raw activations is as good as that of the centred ones in training.
    fve = float(1 - (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    assert fve == pytest.approx(records[-1]["metrics/explained_variance"], abs=0.15)
    assert sae.cfg.metadata.training_architecture in (architecture, None)
    assert sae.cfg.metadata.hook_name == HOOK
    save_sae(sae, tmp_path / "sae", manifest=new_manifest("sae", config={}, inputs={}, seed=0, version=1))
    for loaded in (SAE.load_from_disk(tmp_path / "sae"), load_sae(tmp_path / "sae")):
        torch.testing.assert_close(loaded(x), sae(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", OPTIONS)
def test_folding_changes_the_units_and_nothing_else(cache_of: WriteRows, architecture: str) -> None:
    cache, x = cache_of(rows()), rows()[:50]
    learner = SAELensLearner(8, config(architecture), torch.device("cpu"))
    from sae_persona.sae.train import _centring

    centring = _centring(cache, HOOK)
    for _, batch in zip(range(30), cache.batches(HOOK, batch_size=64, seed=0), strict=False):
        learner.advance(centring.apply(batch))
    training = learner._trainer.sae.eval()
    with torch.no_grad():
        if architecture == "matryoshka_batchtopk":  # in training its activations depend on the batch
            z = centring.apply(x)
            pre = ((z - training.b_dec) @ training.W_enc + training.b_enc) * training.W_dec.norm(dim=-1)
            gated = pre * (pre > training.topk_threshold)
            expected = gated / training.W_dec.norm(dim=-1) @ training.W_dec + training.b_dec
        else:
            expected = training(centring.apply(x))
        expected = expected / centring.scale + centring.mean.float()
    torch.testing.assert_close(learner.folded(centring, {})(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["jumprelu", "matryoshka_batchtopk"])
def test_a_stopped_run_resumes_bit_for_bit(cache_of: WriteRows, tmp_path: Path, architecture: str) -> None:
    cache, state, steps = cache_of(rows()), tmp_path / "state", []

    def stop(n_tokens: int) -> None:
        steps.append(n_tokens)
        if len(steps) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(cache, HOOK, config(architecture), checkpoint=state, checkpoint_every=5, progress=stop)
    resumed = train_sae(cache, HOOK, config(architecture), checkpoint=state, checkpoint_every=5)
    whole = train_sae(cache, HOOK, config(architecture))
    for (name, tensor), (_, other) in zip(resumed.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


def test_what_is_not_the_architectures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"options.l0_coefficient is no option of standard.*l1_coefficient"):
        SAELensLearner(8, config("standard", options={"l0_coefficient": 1.0}), torch.device("cpu"))
    with pytest.raises(ConfigError, match="not its"):
        config("topk", options={"l1_coefficient": 1.0})
    with pytest.raises(ConfigError, match="aux_tokens is not used"):
        config("gated", aux_tokens=3)


def test_the_global_generator_is_left_alone(cache_of: WriteRows) -> None:
    before = torch.get_rng_state()
    train_sae(cache_of(rows()), HOOK, config("standard"))
    assert torch.equal(torch.get_rng_state(), before)
