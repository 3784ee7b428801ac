"""Descriptions of the frame interpolators, a part of `mv2_jax.config`, which passes them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RIFEConfig:
    """RIFE 4.25 (arXiv 2011.06294; hzwer/Practical-RIFE): intermediate flow network."""

    widths: tuple[int, ...] = (192, 128, 96, 64, 32)
    scales: tuple[int, ...] = (16, 8, 4, 2, 1)
    pad_to: int = 64


@dataclass(frozen=True)
class RefinedRIFEConfig:
    """RIFE 4.0 with context network and U-Net (arXiv 2011.06294; hzwer/Practical-RIFE)."""

    widths: tuple[int, ...] = (192, 128, 96, 64)
    scales: tuple[int, ...] = (8, 4, 2, 1)
    refine_width: int = 16
    pad_to: int = 128


@dataclass(frozen=True)
class EMAVFIConfig:
    """EMA-VFI (arXiv 2303.00440; MCG-NJU/EMA-VFI), the paper's light interpolator.

    The default is the public `ours`; `ours_small` has width 16 and depths (2, 2, 2, 2, 2).
    `any_time`: trained for any time (the public `_t` weights), not for the middle alone.
    """

    width: int = 32
    depths: tuple[int, ...] = (2, 2, 2, 4, 4)
    window: int = 7
    pad_to: int = 32
    any_time: bool = True


@dataclass(frozen=True)
class EDSCConfig:
    """EDSC alone (arXiv 2006.08070; Xianhang/EDSC-pytorch).

    `any_time`: the public `EDSC_m`; False: `EDSC_s`, which makes the middle frame.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    any_time: bool = True


@dataclass(frozen=True)
class MeanVFIConfig:
    """Several interpolators, whose frames' mean is the result; `members` are their configs."""

    members: tuple[Any, ...]

    @property
    def any_time(self) -> bool:
        """Whether every member knows any time."""
        return all(getattr(member, "any_time", True) for member in self.members)


@dataclass(frozen=True)
class GANVFIConfig:
    """The paper's GAN interpolator: VQ autoencoder, cross-attention to the neighbours, EDSC head.

    Sizes are VQ-FIGAN's (LDMVFI, arXiv 2303.09508). `width` times `multipliers` are the levels'
    channels, each level halving the plane; `taps` the side of EDSC's kernels; `head_widths` those
    of its small networks.

    What VQ-FIGAN does not have, each with what switches it off: `time_width`, any time (0: the
    middle alone); `steady`, the light model's frame joins what is attended to and what is summed
    (False); `half_heads`, EDSC's predictions on half the plane (False); `patch_size` folds pixels
    into channels first (1); `head_slope`, the slope of the heads' rectifiers below zero (0: where
    the light model is often right, silence is soon the best answer, and plain ones never speak
    again). `public_kernel` and `batch_norm` are what public weights need, see
    `nn.edsc` and `nn.maxvit`; `ldmvfi()` sets all of these. `light` is the light model's config.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2, 4)
    z_channels: int = 3
    codes: int = 8192
    code_width: int = 3
    norm_groups: int = 32
    window: int = 8
    head_width: int = 32  # of the cross-attention
    taps: int = 5
    head_widths: tuple[int, ...] = (64, 32)
    head_slope: float = 0.0  # 0.1 in the recipes; files without it were made with 0
    patch_size: int = 1
    half_heads: bool = True
    time_width: int = 256
    steady: bool = True
    public_kernel: bool = False
    batch_norm: bool = False
    light: RIFEConfig | RefinedRIFEConfig | EMAVFIConfig = RIFEConfig()

    @property
    def pad_to(self) -> int:
        """Sides are padded to a multiple of this: whole windows on the coarsest plane."""
        return self.patch_size * 2 ** len(self.multipliers) * self.window

    @property
    def head_scale(self) -> int:
        """Pixels along one side of a cell of the plane that EDSC's numbers are predicted on."""
        return self.patch_size * (2 if self.half_heads else 1)

    @classmethod
    def ldmvfi(cls, **changes: Any) -> GANVFIConfig:
        """VQ-FIGAN as published, for its public weights."""
        public = dict(time_width=0, steady=False, half_heads=False, public_kernel=True)
        return cls(**{**public, "batch_norm": True, **changes})
