"""How a checkpoint is sampled: by its scheduler, as diffusers reads it, marks and metadata."""

import inspect
import json
import shutil

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import save_file

from mv2_jax import bundle
from mv2_jax.config import UNetConfig
from mv2_jax.convert import ldm, schedules
from mv2_jax.convert.checkpoint import Checkpoint
from mv2_jax.diffusion import samplers
from mv2_jax.diffusion import schedules as grids
from mv2_jax.errors import InputError

diffusers = pytest.importorskip("diffusers")

SD15, SDXL = UNetConfig(), UNetConfig(pooled_width=1280, context_width=2048)
# What Stable Diffusion's folders say, whatever the class.
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD |= {"clip_sample": False, "steps_offset": 1}


def source(settings=None, marks=(), **metadata):
    return Checkpoint("x", (), settings, dict.fromkeys(marks), metadata)


def still(settings=None, marks=(), unet=SDXL, few=None, schedule=None, prediction=None, **metadata):
    said = schedules.Override(schedule, prediction)
    return schedules.still(source(settings, marks, **metadata), unet, said, few)


@pytest.mark.parametrize("name", schedules.SCHEDULERS)
def test_absent_settings_are_the_class_own(name):
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    for key, value in schedules.SCHEDULERS[name].defaults.items():
        if key in signature and key != "clip_sample":
            assert signature[key].default == value, key
        elif key == "clip_sample":
            assert value == (signature[key].default if key in signature else False)


@pytest.mark.parametrize("name", schedules.SCHEDULERS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ],
)
def test_folders_are_read_as_their_own_library_reads_them(name, change, tmp_path):
    """Betas, prediction and the timesteps that are visited, from what diffusers itself saves."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    asked = {key: value for key, value in {**SD, **change}.items() if key in known}
    theirs = cls(**asked)
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "scheduler_config.json").read_text())
    for given in (settings, {"_class_name": name, **asked}):  # whole, and with absent ones
        got = still(given, few="none")
        ours = grids.alphas_cumprod(got.schedule)
        last = ours[-1:] if not got.schedule.zero_terminal_snr else ours[-1:] * 0
        np.testing.assert_allclose(ours[:-1], theirs.alphas_cumprod[:-1], rtol=2e-5, atol=1e-10)
        np.testing.assert_allclose(last, theirs.alphas_cumprod[-1:], rtol=2e-5, atol=1e-7)
        assert got.schedule.prediction == ("v" if change else "eps")
    theirs.set_timesteps(10)
    visited = samplers.get(got.sampler)().grid(got.schedule, 10).t
    if name.startswith(("Heun", "KDPM2", "PNDM", "LCM", "TCD")):  # solvers that go other ways
        visited, wanted = visited[:1], np.asarray(theirs.timesteps, np.float64)[:1]
        atol = 0 if name.startswith(("PNDM", "LCM", "TCD")) else 1e-3
    else:
        wanted, atol = np.asarray(theirs.timesteps, np.float64), 1e-3
    np.testing.assert_allclose(visited, wanted, rtol=0, atol=atol)


def test_stable_diffusions_pipelines_correct_their_schedulers():
    """As StableDiffusionPipeline does for SD1.5, and SDXL's does not."""
    old = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 0, "clip_sample": True}
    assert still(old, unet=SD15).schedule.steps_offset == 1
    with pytest.raises(InputError, match="clips its samples"):
        still(old)
    assert still({**old, "clip_sample": False}).schedule.steps_offset == 0


def test_marks_and_metadata():
    plain = still()
    assert (plain.schedule.prediction, plain.sampler, plain.steps) == ("eps", "ddim", 25)
    assert plain.guidance is None
    assert still(marks=["v_pred"]).schedule.prediction == "v"
    both = still(marks=["v_pred", "ztsnr"])
    assert both.schedule.zero_terminal_snr and both.schedule.spacing == "trailing"
    assert (both.schedule.prediction, both.sampler) == ("v", "euler")
    for key, word, kind in (
        ("modelspec.prediction_type", "v", "v"),
        ("modelspec.prediction_type", "epsilon", "eps"),
        ("modelspec.predict_key", "v", "v"),
        ("modelspec.predict_key", "epsilon", "eps"),
        ("ss_v_parameterization", "True", "v"),
        ("ss_v_parameterization", "False", "eps"),
    ):
        assert still(**{key: word}).schedule.prediction == kind
    assert "its metadata (modelspec.predict_key)" in still(**{"modelspec.predict_key": "v"}).source


@pytest.mark.parametrize(
    "settings, marks, metadata, text",
    [
        (None, ["v_pred"], {"modelspec.prediction_type": "epsilon"}, "is contradicted"),
        ({"_class_name": "DDIMScheduler", **SD}, ["v_pred"], {}, "its DDIMScheduler says eps"),
        (None, [], {"modelspec.predict_key": "flow"}, "'flow', which is not known"),
        (None, ["ztsnr"], {}, "ends in pure noise.*--prediction v"),
        (None, ["edm_mean", "edm_std"], {}, "edm_mean marks Playground 2.5"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, [], {},
         "use_dynamic_shifting, which is not supported"),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": "x"}, [], {}, "sigma_max is 'x'"),
        ({"_class_name": "DDIMSchedular"}, [], {}, "did you mean 'DDIMScheduler'"),
        ({"_class_name": 7}, [], {}, "its scheduler is 7, which is not known here"),
        ({**SD, "trained_betas": [0.1, 0.2]}, [], {}, "trained_betas .* not supported"),
        ({**SD, "use_flow_sigmas": True}, [], {}, "use_flow_sigmas True"),
        ({**SD, "sigma_max": 700.0}, [], {}, "sigma_max 700.0"),
        ({**SD, "timestep_type": "continuous"}, [], {}, "timestep_type 'continuous'"),
        ({**SD, "beta_shedule": "linear"}, [], {}, "did you mean 'beta_schedule'"),
        ({**SD, "beta_schedule": "squaredcos_cap_v2"}, [], {}, "unknown beta_schedule 'squaredcos"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_and_can_be_overridden(settings, marks, metadata, text):
    with pytest.raises(InputError, match=f"^x: .*{text}"):
        still(settings, marks, **metadata)
    said = still(settings, marks, schedule="sd", prediction="v", **metadata)
    assert said.schedule.prediction == "v" and not said.schedule.zero_terminal_snr
    assert still(schedule="ztsnr").schedule.zero_terminal_snr


@pytest.mark.parametrize(
    "name, settings, sampler, steps",
    [
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "euler_a", 4),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "euler", 4),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler", 25),
        ("EulerDiscreteScheduler",
         {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, "euler", 25),
        ("LCMScheduler", {}, "lcm", 4),
        ("TCDScheduler", {}, "tcd", 4),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "dpmpp_2m_karras", 25),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"},
         "dpmpp_2m_sde", 25),
        ("UniPCMultistepScheduler", {}, "unipc", 25),
    ],
)  # fmt: skip
def test_distilled_networks_are_told_by_their_scheduler(name, settings, sampler, steps):
    given = {"_class_name": name, **SD, **settings}
    got = still(given)
    assert (got.sampler, got.steps) == (sampler, steps)
    assert got.guidance == (1.0 if steps == 4 else None)
    assert still(given, few="none").steps == 25
    assert still(given, few="hyper").sampler == "ddim"


def test_convert_reads_marks_metadata_and_overrides(small, sources, tmp_path, capsys):
    """NoobAI's form: one SDXL file with empty tensors for marks; kohya's: metadata."""
    state = small.sdxl_file(small.sdxl(), small.as_ldm, ldm.unet_modules(2, 1))
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    marks = {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}
    save_file({**state, **marks}, tmp_path / "marked.safetensors")
    save_file(state, tmp_path / "told.safetensors", {"modelspec.prediction_type": "v"})
    base = ["--unet", sources / "pipeline", "--t2i"]
    assert convert(*base, tmp_path / "marked.safetensors", "-o", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert (
        "t2i: predicts v over scaled linear to pure noise betas, trailing; euler, 25 steps" in said
    )
    assert "(its tensor v_pred)" in said
    first = bundle.read(tmp_path / "a").stages["t2i"].schedule
    assert (first.prediction, first.zero_terminal_snr, first.spacing) == ("v", True, "trailing")
    told = [*base, tmp_path / "told.safetensors"]
    assert convert(*told, "-o", tmp_path / "b") == 0
    assert bundle.read(tmp_path / "b").stages["t2i"].schedule.prediction == "v"
    words = ["--t2i-prediction", "eps", "--t2i-few-steps", "lightning"]
    assert convert(*told, *words, "-o", tmp_path / "c") == 0
    third = bundle.read(tmp_path / "c")
    assert third.stages["t2i"].schedule.prediction == "eps"
    assert (third.stages["t2i"].steps, third.defaults["t2i"]["guidance"]) == (4, 1.0)
    line = refused(capsys, *base[:2], "--t2i-prediction", "v", "-o", tmp_path / "d")
    assert (
        "--t2i-prediction goes with --t2i; for the shared checkpoint there is --prediction" in line
    )


def test_a_pipelines_index_names_the_class(sources, tmp_path, capsys):
    """Turbo's folder: ancestral Euler at trailing timesteps, named in model_index.json."""
    shutil.copytree(sources / "pipeline", tmp_path / "turbo")
    diffusers.EulerAncestralDiscreteScheduler(
        **{key: SD[key] for key in ("beta_schedule", "beta_start", "beta_end")},
        timestep_spacing="trailing",
    ).save_pretrained(tmp_path / "turbo" / "scheduler")
    assert convert("--unet", tmp_path / "turbo", "-o", tmp_path / "a") == 0
    assert "trailing; euler_a, 4 steps, guidance 1" in capsys.readouterr().out
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (tmp_path / "turbo" / "model_index.json").write_text(json.dumps(index))
    assert convert("--unet", tmp_path / "turbo", "-o", tmp_path / "b") == 0
    assert bundle.read(tmp_path / "b").stages["t2i"].sampler == "lcm"


def visited(process, theirs, steps=7):
    """(ours, theirs) of noise levels and times."""
    theirs.set_timesteps(steps)
    grid = process.grid(steps)
    flow = hasattr(theirs, "shift")
    yield (grid.sigma if flow else grid.sigma / grid.alpha), np.asarray(theirs.sigmas)[:-1]
    yield grid.t, np.asarray(theirs.timesteps)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"sigma_max": 120.0, "sigma_data": 1.0,
         "sigma_schedule": "exponential", "prediction_type": "v_prediction"}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_max": 70.0}),
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)  # fmt: skip
def test_other_processes_are_read_from_their_folders(name, settings, tmp_path):
    """CosXL's, Playground's and flow-matching folders: levels and times are diffusers'."""
    theirs = getattr(diffusers, name)(**settings)
    theirs.save_pretrained(tmp_path)
    got = still(json.loads((tmp_path / "scheduler_config.json").read_text()))
    assert got.sampler == "euler" and name in got.source
    for ours, wanted in visited(got.schedule, theirs):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5)
    if name.startswith("EDM"):
        v = settings.get("prediction_type") == "v_prediction"
        assert got.schedule.output == ("v" if v else "eps")


def test_cosxl_is_told_by_its_marks(small, sources, tmp_path, capsys):
    state = small.sdxl_file(small.sdxl(), small.as_ldm, ldm.unet_modules(2, 1))
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    ends = {"sigma_max": 110.0, "sigma_min": 0.003}
    marks = {f"edm_vpred.{key}": np.float32([value]) for key, value in ends.items()}
    save_file({**state, **marks}, tmp_path / "cosxl.safetensors")
    flags = ["--unet", sources / "pipeline", "--t2i", tmp_path / "cosxl.safetensors"]
    assert convert(*flags, "-o", tmp_path / "out") == 0
    assert "t2i: EDM (sigma_min 0.003" in capsys.readouterr().out.replace(
        "0.003000000026077032", "0.003"
    )
    process = bundle.read(tmp_path / "out").stages["t2i"].schedule
    theirs = diffusers.EDMEulerScheduler(
        sigma_schedule="exponential", sigma_data=1.0, prediction_type="v_prediction", **ends
    )
    for ours, wanted in visited(process, theirs):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5)
    line = refused(
        capsys, "--unet", tmp_path / "cosxl.safetensors", "--motion", sources / "motion",
        "-o", tmp_path / "x",
    )  # fmt: skip
    assert "widths by level" in line or "motion modules are trained over discrete" in line


def test_sdxl_unets_alone_take_text_encoders_from_elsewhere(small, sources, tmp_path, capsys):
    """Lightning's and DMD2's files are a UNet alone."""
    parts = small.sdxl()
    parts["unet"].save_pretrained(tmp_path / "unet")
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "base" / name)
    flags = ["--unet", sources / "pipeline", "--t2i", tmp_path / "unet"]
    line = refused(capsys, *flags, "-o", tmp_path / "x")
    assert "wants two text encoders" in line
    base = ["--t2i-text-encoder", tmp_path / "base", "--t2i-vae", tmp_path / "base"]
    few = ["--t2i-few-steps", "lightning"]
    assert convert(*flags, *base, *few, "-o", tmp_path / "out") == 0
    made = bundle.read(tmp_path / "out")
    assert {"t2i_unet", "t2i_vae", "t2i_text_encoder", "t2i_text_encoder_2"} <= set(made.components)
    assert (made.stages["t2i"].sampler, made.stages["t2i"].steps) == ("euler", 4)
