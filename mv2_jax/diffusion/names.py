"""What may be named in this folder, and where each lies; `lookup.find` takes `module:name` besides.

Nothing here imports JAX, so that help texts and flags read these tables too.
"""

_SOLVERS, _MULTISTEP = "mv2_jax.diffusion.solvers", "mv2_jax.diffusion.multistep"
_GUIDANCE = "mv2_jax.diffusion.guidance"
_PREDICTION, _LOSSES = "mv2_jax.diffusion.prediction", "mv2_jax.diffusion.losses"

# Functions that make a `points.Sampler`.
SAMPLERS = {
    "ddim": f"{_SOLVERS}:ddim",
    "euler": f"{_SOLVERS}:euler",
    "euler_a": f"{_SOLVERS}:euler_a",
    "dpmpp_2m": f"{_MULTISTEP}:dpmpp_2m",
    "dpmpp_2m_karras": f"{_MULTISTEP}:dpmpp_2m_karras",
    "dpmpp_2m_sde": f"{_MULTISTEP}:dpmpp_2m_sde",
    "dpmpp_2m_sde_karras": f"{_MULTISTEP}:dpmpp_2m_sde_karras",
    "unipc": f"{_MULTISTEP}:unipc",
    "unipc_karras": f"{_MULTISTEP}:unipc_karras",
    "lcm": f"{_SOLVERS}:lcm",
    "tcd": f"{_SOLVERS}:tcd",
    "consistency": f"{_SOLVERS}:consistency",
}

# Rules of guidance: `guidance.Rule`s.
RULES = {
    "none": f"{_GUIDANCE}:NONE",
    "text": f"{_GUIDANCE}:TEXT",
    "public": f"{_GUIDANCE}:PUBLIC",
    "apart": f"{_GUIDANCE}:APART",
}

# What a network outputs: `prediction.Prediction`s.
PREDICTIONS = {
    "eps": f"{_PREDICTION}:EPS",
    "v": f"{_PREDICTION}:V",
    "x0": f"{_PREDICTION}:X0",
    "velocity": f"{_PREDICTION}:VELOCITY",
}

# `losses.Loss`es, or classes of them; how timesteps are drawn; how errors are weighed.
LOSSES = {"LossConfig": f"{_LOSSES}:LossConfig"}
SAMPLINGS = {
    "uniform": f"{_LOSSES}:uniform",
    "logit_normal": f"{_LOSSES}:logit_normal",
    "mode": f"{_LOSSES}:mode",
    "log_normal": f"{_LOSSES}:log_normal",
}
WEIGHTINGS = {
    "plain": f"{_LOSSES}:plain",
    "min_snr": f"{_LOSSES}:min_snr",
    "min_snr_floor": f"{_LOSSES}:min_snr_floor",
    "snr": f"{_LOSSES}:snr",
    "p2": f"{_LOSSES}:p2",
    "cosmap": f"{_LOSSES}:cosmap",
}

# Which timesteps of a discrete schedule are visited.
SPACINGS = ("leading", "linspace", "trailing")

# Where the windows of long clips lie (`windows`).
CONTEXTS = ("static", "uniform", "looped", "closed")
