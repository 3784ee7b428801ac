"""Diffusion without networks: everything here is told of one as a function. Where to look:

- `points`: what a level of noise, a chain's grid of them, and a sampler are;
- `process` (and `schedules`, the discrete ones): how a sample becomes noise; `prediction`: what the
  network outputs of it;
- `samplers`: the loop; `solvers` and `multistep`: the samplers themselves;
- `guidance`: rows of the network told more or less, made into one;
- `windows`, `free_init`, `noise_prior`: long clips, chains begun again, what a chain starts from;
- `losses`: training; `keys`: randomness, by sample and purpose;
- `names`: what may be named in flags and cascade folders, and where each lies.
"""
