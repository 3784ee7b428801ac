"""Random weights for torch modules, of the kind that trained ones are."""

from __future__ import annotations


def randomise(module, seed=0):
    """Random values for every parameter and buffer of a torch module, zero-initialised ones too.

    Matrices keep activations near unit scale; norms stay near one, so that nothing vanishes.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(".pe"):
                tensor.add_(0.3 * noise)
            elif tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                is_scale = "norm" in name and name.endswith("weight")
                tensor.copy_(0.2 * noise + (1.0 if is_scale else 0.0))
    return module.eval()
