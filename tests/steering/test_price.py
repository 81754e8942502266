"""The price of steering, against the formulas done naively."""

import pytest
import torch

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import DataError
from sae_persona.model.generate import HookedEdit
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import random_directions
from sae_persona.steering.edits import AddDirection, Window, steer, window_mask
from sae_persona.steering.price import position_in_text, price, prices

HOOK = "blocks.0.hook_resid_post"
P, H, A = Part.PROMPT, Part.HEADER, Part.ANSWER


def row(*ids: int) -> TokenRow:
    return TokenRow(ids, (P,) * len(ids))


def test_cross_entropy_and_divergence_are_those_of_one_text_at_a_time(tiny_model: LoadedModel) -> None:
    rows = [row(2, 30, 31, 40, 50), row(2, 9, 30), row(2, 60, 12, 7)]
    edit = AddDirection(random_directions(32, n=1, seed=0)[0], 5.0)
    clean, steered, divergence, n = 0.0, 0.0, 0.0, 0
    for one in rows:
        ids = torch.tensor([one.ids])
        p = tiny_model.hf(ids).logits[0].double().softmax(-1)
        with steer(tiny_model, HOOK, edit):
            q = tiny_model.hf(ids).logits[0].double().softmax(-1)
        for i, token in enumerate(one.ids[1:]):
            clean -= float(p[i, token].log())
            steered -= float(q[i, token].log())
            divergence += float((p[i] * (p[i] / q[i]).log()).sum())
            n += 1
    found = price(tiny_model, [HookedEdit(HOOK, edit)], rows, batch_size=2)
    assert found.n_tokens == n == 9
    assert found.ce_unsteered == pytest.approx(clean / n, rel=1e-5)
    assert found.ce_steered == pytest.approx(steered / n, rel=1e-5)
    assert found.kl == pytest.approx(divergence / n, rel=1e-4)
    assert found.kl > 1e-4


def test_no_edit_costs_nothing(tiny_model: LoadedModel) -> None:
    found = price(tiny_model, [], [row(2, 30, 31)])
    assert (found.kl, found.ce_steered) == (0, found.ce_unsteered)


@pytest.mark.parametrize(
    ("window", "expected"),
    [("all", "11111"), ("prompt", "11100"), ("header", "00100"), ("answer", "00011"), ("newest", "00111")],
)
def test_windows_of_a_chat_that_was_written_before(window: Window, expected: str) -> None:
    batch = pad_rows([TokenRow((2, 30, 4, 50, 51), (P, P, H, A, A)), row(2)], pad_id=0)
    selected = window_mask(window, position_in_text(batch))[..., 0].int().tolist()
    assert "".join(map(str, selected[0])) == expected
    assert selected[1][1:] == [0, 0, 0, 0], "padding is never steered"


def test_rows_of_one_token_have_no_price(tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="none of 1 rows has a second token"):
        price(tiny_model, [], [row(2)])


def test_many_conditions_cost_what_each_costs_alone(tiny_model: LoadedModel) -> None:
    rows = [row(2, 30, 31, 40, 50), row(2), row(2, 9, 30), row(2, 60, 12, 7)]
    one, other = random_directions(32, n=2, seed=0)
    conditions = [
        [HookedEdit(HOOK, AddDirection(one, 5.0))],
        [],
        [HookedEdit(HOOK, AddDirection(one, 2.0)), HookedEdit("blocks.1.hook_resid_post", AddDirection(other, 3.0))],
    ]
    told: list[int] = []
    found = prices(tiny_model, conditions, rows, batch_size=2, progress=told.append)
    assert found == [price(tiny_model, edits, rows, batch_size=2) for edits in conditions]
    assert sum(told) == 3 * 4
    assert len({one.kl for one in found}) == 3
    assert found[0].added == found[0].ce_steered - found[1].ce_steered
