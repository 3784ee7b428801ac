"""Compiling what runs once."""

import jax


def quick(function, *static):
    """`jax.jit` without LLVM's optimiser, which takes longer than such programs run.

    `static` names arguments. A function that is jitted already is compiled anew.
    """
    inner = function.__wrapped__ if isinstance(function, jax.stages.Wrapped) else function
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(inner, static_argnames=static, compiler_options=options)
