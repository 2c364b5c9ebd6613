"""The flat public API: complete, typed, and free until it is used."""

import subprocess
import sys
from pathlib import Path

import coeff_diffusion


def test_every_public_name_is_there() -> None:
    for name in coeff_diffusion.__all__:
        assert getattr(coeff_diffusion, name) is not None
    assert set(dir(coeff_diffusion)) == set(coeff_diffusion.__all__)
    assert set(coeff_diffusion._HOME) == set(coeff_diffusion.__all__) - {"__version__"}
    assert (Path(coeff_diffusion.__file__).parent / "py.typed").exists()
    assert not hasattr(coeff_diffusion, "nonsense")


def test_importing_it_costs_nothing() -> None:
    code = "import coeff_diffusion, sys; print(*{'torch', 'diffusers', 'gradio'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
