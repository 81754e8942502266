"""One number per checkpoint: the mean of some latents over fixed texts, before and after fine-tuning alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_persona.data.tokens import TokenRow
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import Reading
from sae_persona.sae.statistics import Selection, latent_stats

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True, eq=False)
class Probe:
    """What is read: latents, over which tokens of which texts. The texts are the same for every checkpoint.

    With given texts a reading has no sampling noise, and it rises because the model's state changed and not because its
    answers already did.
    """

    sae: "SAE"
    hook_name: str
    latents: tuple[int, ...]
    reading: Reading
    """`gated` or `pre_activation`."""
    tokens: Selection
    """`answer` or `header`."""
    rows: Sequence[TokenRow]
    questions: Sequence[str]

    def read(self, model: LoadedModel) -> float:
        """Mean activation of the latents over the tokens, summed over latents, in the SAE's units."""
        stats = latent_stats(
            self.sae,
            model,
            self.rows,
            questions=self.questions,
            hook_name=self.hook_name,
            selections=(self.tokens,),
        )
        return float(stats[self.reading, self.tokens].mean[list(self.latents)].sum())
