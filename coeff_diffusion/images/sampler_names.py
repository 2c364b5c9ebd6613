"""What other programs call their samplers and schedules, and which sampler here draws the same way.

A sampler here is a solver and, where its name ends so, Karras sigmas. Other programs write the two apart ("DPM++ 2M"
and "Karras", `dpmpp_2m` and `karras`) or in one word (`dpmpp_2m_k`, `k_dpmpp_2m`).
"""

import re
from typing import NamedTuple

KARRAS = " Karras"
# Solvers by our name -> A1111 and Forge, ComfyUI and Fooocus and SwarmUI, InvokeAI, NovelAI.
SOLVERS: dict[str, tuple[str, ...]] = {
    "DDIM": ("DDIM", "ddim_v3"),
    "DDPM": ("DDPM",),
    "Euler": ("Euler", "k_euler"),
    "Euler a": ("Euler a", "Euler Ancestral", "k_euler_a", "k_euler_ancestral"),
    "DPM++ 2M": ("DPM++ 2M", "k_dpmpp_2m", "k_dpmpp_2"),
    "DPM++ 2M SDE": ("DPM++ 2M SDE", "dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"),
    "UniPC": ("UniPC", "uni_pc_bh2"),
    "Heun": ("Heun", "k_heun"),
    "PLMS": ("PLMS", "PNDM", "k_plms"),
}
# Why others have no counterpart here.
WITHOUT: dict[str, tuple[str, ...]] = {
    "its solver is not here": (
        "LMS", "k_lms", "DPM2", "DPM2 a", "dpm_2", "dpm_2_ancestral", "k_dpm_2", "k_dpm_2_a", "k_dpm_2_ancestral",
        "kdpm_2", "kdpm_2_a", "DPM fast", "k_dpm_fast", "DPM adaptive", "k_dpm_adaptive", "DPM++ 2S a",
        "dpmpp_2s_ancestral", "k_dpmpp_2s_ancestral", "dpmpp_2s", "DPM++ SDE", "dpmpp_sde_gpu", "k_dpmpp_sde",
        "DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun_gpu", "DPM++ 3M", "DPM++ 3M SDE", "dpmpp_3m_sde_gpu", "heunpp2",
        "Heun++ 2", "Restart", "DEIS", "iPNDM", "ipndm_v", "res_multistep", "res_multistep_ancestral", "er_sde",
        "sa_solver", "sa_solver_pece", "seeds_2", "seeds_3", "gradient_estimation", "exp_heun_2_x0",
        "exp_heun_2_x0_sde", "dpm_solver", "dpmpp_1s", "nai_smea", "nai_smea_dyn", "k_dpmpp_ode_m",
    ),
    "it guides in another way": (
        "DDIM CFG++", "euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "dpmpp_2s_ancestral_cfg_pp",
        "res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp", "gradient_estimation_cfg_pp",
    ),
    "it is for models that draw in a few steps": ("LCM", "TCD", "Euler a Turbo", "DPM++ 2M Turbo"),
}  # fmt: skip
# Schedules -> what is put behind a solver's name for it; None where only the usual steps are left.
SCHEDULES: dict[str | None, tuple[str, ...]] = {
    "": ("", "Normal", "Uniform", "Default", "Native", "None"),
    KARRAS: ("Karras", "k"),
    None: (
        "Exponential", "Polyexponential", "SGM Uniform", "Simple", "DDIM", "ddim_uniform", "Beta", "beta57",
        "KL Optimal", "Align Your Steps", "Align Your Steps 11", "Align Your Steps 32", "Align Your Steps GITS", "AYS",
        "linear_quadratic", "Turbo", "LCM", "TCD", "bong_tangent", "Lambdas", "Flow Match",
    ),
}  # fmt: skip
WITH_KARRAS = ("Euler", "DPM++ 2M", "DPM++ 2M SDE")
OWN = {"DDIM": ("ddim", "ddimuniform")}
"""Schedules, folded, that are a solver's usual steps."""
AUTOMATIC = {"DPM++ 2M": "Karras", "DPM++ 2M SDE": "Exponential"}
"""What A1111's schedule "Automatic" is for a solver; of all others it is the usual one."""

UNKNOWN = "no sampler of that name is known here"


class Found(NamedTuple):
    """The sampler here, and what is different about it; None, and why there is none."""

    label: str | None
    note: str | None = None


def find_sampler(name: str, schedule: str = "") -> Found:
    """The sampler here that draws as another program's does.

    Args:
        name: of the sampler, in any program's spelling.
        schedule: what it writes apart from that, if it does.
    """
    solver, inside = _parted(name)
    if solver not in _SOLVERS:
        return Found(None, _WITHOUT.get(solver, UNKNOWN))
    label, asked = _SOLVERS[solver], schedule.strip()
    if _folded(asked) == "automatic":
        asked = AUTOMATIC.get(label, "")
    schedule = _folded(asked) if asked else inside
    ending = "" if schedule in OWN.get(label, ()) else _SCHEDULES.get(schedule)
    if ending is None or (ending and label not in WITH_KARRAS):
        return Found(label, f"its schedule {(asked or inside)[:40]!r} is not here, so {label} takes its usual steps")
    return Found(label + ending)


def _folded(name: str) -> str:
    """A name without what programs spell differently: case, blanks, hyphens, `++` for `pp`."""
    return re.sub(r"[\W_]+", "", name.lower().replace("++", "pp"))


_SOLVERS = {_folded(name): label for label, names in SOLVERS.items() for name in names}
_WITHOUT = {_folded(name): reason for reason, names in WITHOUT.items() for name in names}
_SCHEDULES = {_folded(name): ending for ending, names in SCHEDULES.items() for name in names}


def _parted(name: str) -> tuple[str, str]:
    """Solver and schedule of a name in one word, folded."""
    whole = _folded(name)
    if whole in _SOLVERS or whole in _WITHOUT:
        return whole, ""
    for schedule in sorted(filter(None, _SCHEDULES), key=len, reverse=True):
        solver = whole.removesuffix(schedule)
        if solver != whole and (solver in _SOLVERS or solver in _WITHOUT):
            return solver, schedule
    return whole, ""
