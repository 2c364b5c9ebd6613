"""A page that is asked to end, as by `docker stop`: what it is training is saved, and it ends in order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import wait

gradio_client = pytest.importorskip("gradio_client")

from coeff_diffusion import Coefficients  # noqa: E402


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process could take")
def test_sigterm_saves_what_is_being_trained(tiny_base_dir: Path, subject_images: Path, tmp_path: Path) -> None:
    folders = ["--subjects_dir", str(tmp_path / "subjects"), "--output_dir", str(tmp_path / "pictures")]
    command = [
        sys.executable,
        "-m",
        "coeff_diffusion.cli",
        "studio",
        "--base",
        str(tiny_base_dir),
        "--port",
        "0",
        *folders,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as page:
        assert page.stdout is not None
        address = page.stdout.readline().split()[4]
        client = gradio_client.Client(address, verbose=False)
        pictures = [gradio_client.handle_file(path) for path in sorted(subject_images.iterdir())]
        settings = {"max_train_steps": 100_000, "train_batch_size": 1, "validation_steps": 0}
        client.predict(pictures, "rex", "dog", "quick", settings, api_name="/train")
        wait(lambda: client.predict(api_name="/status")[0]["step"] > 2)
        client.close()
        for _ in range(3):
            page.send_signal(signal.SIGTERM)
        _, said = page.communicate(timeout=120)
    assert page.returncode == 0, said
    assert Coefficients.load(tmp_path / "subjects" / "rex").info.train_steps > 2
