"""Neuronpedia's and Delphi's files, read back as those programs read them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from sae_persona.attribution.corpus import Corpus
from sae_persona.attribution.delphi import write_delphi
from sae_persona.attribution.neuronpedia import write_neuronpedia
from sae_persona.attribution.reading import read_latents
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import ConfigError, DataError

HOOK = "blocks.0.hook_resid_post"
ROWS = [TokenRow((2, *range(5 + i, 25 + i)), (Part.PROMPT,) * 21) for i in range(12)]


def test_neuronpedias_batch_holds_what_was_read(tiny_model, tiny_sae, tmp_path):
    latents = [i for i, one in read_latents(tiny_sae, Corpus(tiny_model, ROWS), range(12)).items() if one.fires][:2]
    found = read_latents(tiny_sae, Corpus(tiny_model, ROWS), latents)
    path = write_neuronpedia(tmp_path, tiny_sae, tiny_model, list(found.values()), model_id="m", sae_set="s")
    batch = json.loads(path.read_text())
    assert (path.name, batch["model_id"], batch["layer"], batch["sae_set"]) == ("batch-0.json", "m", 0, "s")
    for feature, latent in zip(batch["features"], latents, strict=True):
        reading = found[latent]
        assert feature["feature_index"] == latent
        assert feature["frac_nonzero"] == pytest.approx(reading.density.value)
        assert len(feature["freq_hist_data_bar_heights"]) == len(feature["freq_hist_data_bar_values"])
        assert sum(feature["freq_hist_data_bar_heights"]) == reading.n_firing
        assert len(feature["pos_str"]) == len(feature["pos_values"]) == len(feature["neg_str"]) == 10
        assert sum(feature["logits_hist_data_bar_heights"]) == len(tiny_model.tokenizer)
        top = feature["activations"][0]
        assert (top["bin_min"], top["bin_contains"]) == (-1, -1)
        assert max(top["values"]) == top["values"][top["qualifying_token_index"]] == round(reading.maximum, 3)
        assert all(len(one["tokens"]) == len(one["values"]) for one in feature["activations"])
    with pytest.raises(ConfigError, match="one or more latents"):
        write_neuronpedia(tmp_path, tiny_sae, tiny_model, [], model_id="m", sae_set="s")


def test_delphis_split_holds_every_firing(tiny_model, tiny_sae, tmp_path):
    reading = read_latents(tiny_sae, Corpus(tiny_model, ROWS), range(12))
    latents = [i for i in range(12) if reading[i].fires][:2]
    out = write_delphi(tmp_path, tiny_sae, Corpus(tiny_model, ROWS, batch_size=5), latents, hook_name=HOOK)
    assert sorted(path.name for path in out.iterdir()) == ["0_11.safetensors", "config.json"]
    split, config = load_file(out / "0_11.safetensors"), json.loads((out / "config.json").read_text())
    assert (config["ctx_len"], config["model_name"], config["n_splits"]) == (32, tiny_model.source, 1)
    assert split["tokens"].shape == (12, 32)
    assert (split["locations"].dtype, split["activations"].dtype) == (np.uint16, np.float16)
    assert sorted(map(tuple, split["tokens"][:, :21].tolist())) == sorted(row.ids for row in ROWS)
    for latent in latents:
        mine = split["locations"][:, 2] == latent
        assert mine.sum() == reading[latent].n_firing
        assert split["activations"][mine].max() == pytest.approx(reading[latent].maximum, rel=1e-3)
        row, position, _ = split["locations"][mine][split["activations"][mine].argmax()]
        top = reading[latent].contexts[0]
        token = tiny_model.tokenizer.decode([int(split["tokens"][row, position])])
        assert top.tokens[top.peak].strip() == token.strip()
    silent = [i for i in range(12) if not reading[i].fires]
    if silent:
        with pytest.raises(DataError, match="never fire"):
            write_delphi(tmp_path, tiny_sae, Corpus(tiny_model, ROWS), silent[:1], hook_name=HOOK)
