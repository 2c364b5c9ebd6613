"""Drawing on Ray Serve, over real HTTP: many users at once, and too many."""

import base64
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion import Coefficients
from coeff_diffusion.inference.outside import draw_request
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.serving.config import ServeConfig, ServeError
from coeff_diffusion.serving.on_ray import serving
from coeff_diffusion.training.config import ConfigError

WAIT = 30  # seconds that a picture waits for others in its batch: longer than anybody here waits for an answer
PATIENCE = 20
USERS = {"rex": "rex dog", "tom": "tom cat"}


@pytest.fixture
def subjects(new_subject: Callable[..., Coefficients], tmp_path: Path) -> Path:
    (tmp_path / "subjects").mkdir()
    for seed, (name, trigger) in enumerate(USERS.items()):
        subject = new_subject(name, trigger, 1, seed, class_word=trigger.split()[-1])
        subject.save(tmp_path / "subjects" / f"{name}.safetensors")
    return tmp_path / "subjects"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two workers in processes of this machine."""
    ray = pytest.importorskip("ray", reason='needs pip install "coeff-diffusion[serve]"')
    pytest.importorskip("ray.serve", reason='needs pip install "coeff-diffusion[serve]"', exc_type=ImportError)
    place = tempfile.mkdtemp(dir="/tmp")  # its name is short, as those of sockets have to be
    monkeypatch.setenv("RAY_TMPDIR", place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    shutil.rmtree(place)


@pytest.fixture
def address(ray: Any, tiny_base_dir: Path, subjects: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        base=str(tiny_base_dir),
        subjects_dir=str(subjects),
        port=port,
        pictures_at_once=2,
        batch_wait=WAIT,
        max_queued=4,
    )
    with serving(config) as address:
        yield address


def ask(address: str, path: str, body: Any = None, patience: float = PATIENCE) -> tuple[int, Any, Any]:
    """Status, headers, JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=patience) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


def wish(name: str, steps: int = 2) -> dict[str, Any]:
    return {"prompt": f"a {USERS[name]}", "subjects": {name: 1}, "settings": {"steps": steps, "seed": 5}}


@pytest.mark.slow
def test_users_share_a_batch_and_too_many_are_sent_away(
    address: str, tiny_pipe: StableDiffusionPipeline, subjects: Path
) -> None:
    assert ask(address, "/health")[::2] == (200, {"status": "ok", "replicas": {"RUNNING": 1}})
    assert [one["name"] for one in ask(address, "/subjects")[2]] == list(USERS)
    assert ask(address, "/draw", {"prompt": 1})[0] == 400

    with ThreadPoolExecutor(16) as users:
        # Nobody is answered before the batch is full, so these two are drawn in one.
        answers = list(users.map(lambda name: ask(address, "/draw", wish(name)), USERS))
        studio = Studio(tiny_pipe)
        for name, (status, _, answer) in zip(USERS, answers, strict=True):
            assert status == 200, answer
            studio.load(subjects / f"{name}.safetensors", name=name)
            (alone,) = studio.draw(draw_request(**wish(name)))
            studio.unload(name)
            with Image.open(io.BytesIO(base64.b64decode(answer["pictures"][0]))) as picture:
                assert np.abs(np.asarray(picture).astype(int) - np.asarray(alone.image).astype(int)).max() <= 2
                assert picture.info["parameters"] == answer["parameters"][0] == alone.parameters
        assert answers[0][2]["pictures"] != answers[1][2]["pictures"]

        many = list(users.map(lambda _: ask(address, "/draw", wish("rex", 100), 4 * WAIT), range(16)))
    sent_away = [(headers["retry-after"], answer) for status, headers, answer in many if status == 503]
    assert sent_away
    assert all(int(wait) >= 1 and "try again" in answer["error"] for wait, answer in sent_away)
    assert {status for status, _, _ in many} == {200, 503}
    assert ask(address, "/health")[0] == 200


@pytest.mark.slow
def test_a_base_that_is_not_there(ray: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(ServeError, match="no replica can be started: no such file or folder: .*no base"),
        serving(ServeConfig(base=str(tmp_path / "no base"), port=18_000)),
    ):
        pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r'--ray needs ray; pip install "coeff-diffusion\[serve\]"'),
        serving(ServeConfig()),
    ):
        pass
