"""An explainer without a model: the words under the marks. What a language model says of a latent should beat it."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sae_persona.attribution.explanation import MARKS
from sae_persona.types import Message

_MARKED = re.compile(f"{MARKS[0]}([^{MARKS[1]}]+){MARKS[1]}")
_PASSAGE = re.compile(r'^\d+\. (".*")$', re.MULTILINE)
_WORDS_OF = "the words "


@dataclass(frozen=True)
class Keywords:
    """A `ChatClient` that explains by the most frequent marked words, and calls a passage by whether it holds one."""

    n: int = 8

    def complete(self, messages: Sequence[Message]) -> str:
        """The reply that `explain_latent` or `detection_score` asks for, as the last message is of one or the other."""
        asked = messages[-1].content
        if not asked.startswith("Explanation: "):
            marked = Counter(word for line in asked.splitlines() for word in _MARKED.findall(json.loads(line)))
            return f"EXPLANATION: {_WORDS_OF}{' '.join(word for word, _ in marked.most_common(self.n))}"
        explanation = json.loads(asked.splitlines()[0].removeprefix("Explanation: "))
        words = set(explanation.removeprefix(_WORDS_OF).split())
        passages = [json.loads(quoted) for quoted in _PASSAGE.findall(asked)]
        return json.dumps([int(not words.isdisjoint(passage.split())) for passage in passages])
