"""What whole chains beside diffusers' pipelines have in common."""

from __future__ import annotations

import numpy as np


def ddim(schedule):
    """diffusers' sampler of one of our schedules."""
    import diffusers

    return diffusers.DDIMScheduler(
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.kind,
        clip_sample=False,
        set_alpha_to_one=schedule.final_alpha_one,
        steps_offset=schedule.steps_offset,
        timestep_spacing=schedule.spacing,
    )


def show_pictures(network, adapter):
    """Puts an IP-Adapter, in the names of its own file, into a diffusers UNet."""
    import torch

    halves = {"image_proj": {}, "ip_adapter": {}}
    for name, value in adapter.items():
        half, _, rest = name.partition(".")
        halves[half][rest] = torch.from_numpy(value)
    network._load_ip_adapter_weights([halves], low_cpu_mem_usage=False)


def sdxl_prompt(first, second, ids, end):
    """What SDXL's pipelines make of ids [B, L], but for their rule for empty prompts.

    The second tokenizer's ids are the first's with zeros after the `end`.

    Returns:
        The states of both text encoders before their last layers, and the second's pooled text.
    """
    import torch

    ends = (ids == end).argmax(-1)[:, None]
    zeroed = np.where(np.arange(ids.shape[1]) > ends, 0, ids)
    with torch.no_grad():
        one, two = (
            encode(torch.from_numpy(side).long(), output_hidden_states=True)
            for encode, side in ((first, ids), (second, zeroed))
        )
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


def drift(ours, theirs):
    """The largest difference after each step over that step's largest magnitude."""
    assert len(ours) == len(theirs)
    found = []
    for mine, others in zip(ours, theirs):
        mine, others = np.asarray(mine), np.asarray(others)
        assert mine.shape == others.shape and others.std() > 0.01
        found.append(float(np.abs(mine - others).max() / np.abs(others).max()))
    assert np.isfinite(found).all()
    print("drift by step:", " ".join(f"{x:.1e}" for x in found))
    return max(found)
