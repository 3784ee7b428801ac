"""The stages of a cascade, and what they are put together from. Where to look:

- `stage`: a stage's `Config` and the functions over it: `init`, `condition` (what rows are told),
  `predict` (the backbone's output), `drop` and `loss` (training);
- `conditions`: what a stage is told beside its noisy latents, one file each;
- `t2i`, `i2v`, `v2v`: where each one's chain starts, and a whole chain from raw inputs;
- `chain`: the one driver of a chain of denoising steps;
- `prompts`, `controls`, `idle`: from a user's words and numbers to raw inputs, and what of them a
  stage would not hear;
- `latents`: between pixels and latents;
- `vfi`, `interpolators`, `gaps`, `vfi_table` and `vfi_*`: frames between frames, a file a network.

`mv2_jax.cascade` says what one stage hands to the next.
"""
