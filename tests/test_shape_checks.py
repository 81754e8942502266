"""The shapes in signatures are not decoration: under test, a wrong one is refused."""

import pytest
import torch
from jaxtyping import TypeCheckError

from sae_persona.data.tokens import TokenBatch
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel


def test_a_mask_of_another_width_is_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    TokenBatch(ids, mask=torch.ones(2, 3, dtype=torch.bool), parts=ids)
    with pytest.raises(TypeCheckError, match="mask"):
        TokenBatch(ids, mask=torch.ones(2, 4, dtype=torch.bool), parts=ids)


def test_a_mask_of_numbers_is_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(TypeCheckError, match="mask"):
        TokenBatch(ids, mask=ids, parts=ids)


def test_the_tiny_model_has_the_width_that_tests_count_on(tiny_model: LoadedModel) -> None:
    ids = torch.tensor([[2, 7, 8, 9]])
    batch = TokenBatch(ids, mask=torch.ones_like(ids, dtype=torch.bool), parts=torch.zeros_like(ids))
    resid = residuals(tiny_model.hf, batch, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    assert resid.shape == (1, 4, 32)
