"""OpenCLIP's text tower, from its own layout: fused projections, transposed text projection.

The reference is written here with torch's MultiheadAttention, which is what gives that layout
its names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import TextConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import clip as table
from mv2_jax.models.clip_text import TextEncoder

torch = pytest.importorskip("torch")

CFG = TextConfig(40, 9, 24, 2, 3, 36, "gelu", projection=16, eos_token_id=39)
IDS = np.random.default_rng(0).integers(1, 38, (3, 9)).astype(np.int32)
IDS[0, 4], IDS[0, 5:], IDS[1, 8], IDS[2, 6], IDS[2, 7:] = 39, 0, 39, 39, 0


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(CFG.width), torch.nn.LayerNorm(CFG.width)
        self.attn = torch.nn.MultiheadAttention(CFG.width, CFG.heads, batch_first=True)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("c_fc", torch.nn.Linear(CFG.width, CFG.mlp_width))
        self.mlp.add_module("gelu", torch.nn.GELU())
        self.mlp.add_module("c_proj", torch.nn.Linear(CFG.mlp_width, CFG.width))

    def forward(self, x):
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=future, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(CFG.vocab_size, CFG.width)
        self.positional_embedding = torch.nn.Parameter(torch.zeros(CFG.max_length, CFG.width))
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.ModuleList(Block() for _ in range(CFG.layers))
        self.ln_final = torch.nn.LayerNorm(CFG.width)
        self.text_projection = torch.nn.Parameter(torch.zeros(CFG.width, CFG.projection))
        self.logit_scale = torch.nn.Parameter(torch.ones([]))

    def forward(self, ids):
        states = [self.token_embedding(ids) + self.positional_embedding]
        for block in self.transformer.resblocks:
            states.append(block(states[-1]))
        ends = self.ln_final(states[-1])[torch.arange(len(ids)), ids.argmax(-1)]
        return states, ends @ self.text_projection


@pytest.mark.parametrize(
    "prefix", ["", "cond_stage_model.model.", "conditioner.embedders.1.model."]
)
def test_text_tower(parity, prefix):
    theirs = parity.randomise(Tower())
    ours = TextEncoder(CFG)
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    (found,) = table.find_text(state)
    assert found.prefix == prefix
    target = parity.shapes(ours, jnp.asarray(IDS))
    params = parity.convert(Renamed(state, prefix), found.table, target)
    if prefix == "":
        wanted = dict(theirs.state_dict())
        del wanted["logit_scale"]
        parity.same_state(export(params, found.table), wanted)
    with torch.no_grad():
        states, projected = theirs(torch.from_numpy(IDS))
    got = jax.jit(ours.apply)({"params": params}, IDS)
    for a, b in zip(got.hidden_states, states):
        assert parity.error(a, b) < 2e-6  # measured: 6e-7
    assert parity.error(got.projected, projected) < 2e-6


def test_sdxls_two_encoders_are_told_apart():
    names = [
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.token_embedding.weight",
        "model.diffusion_model.time_embed.0.weight",
    ]
    prefixes = [found.prefix for found in table.find_text(names)]
    assert prefixes == ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]
