"""Three galleries beside each other: the subject's pictures, the previews from step 0 on, and the latest one."""

from pathlib import Path

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService, TrainingJob  # noqa: E402
from coeff_diffusion.training.config import TrainConfig  # noqa: E402
from coeff_diffusion.ui.train_previews import SHOWN, Previews  # noqa: E402


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    (tmp_path / "rex" / "pictures").mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "rex" / "pictures" / "001.png")
    return TrainingJob(1, "rex", TrainConfig(output_dir=str(tmp_path / "rex")))


def test_step_0_stays_and_the_latest_is_apart(service: StudioService, job: TrainingJob) -> None:
    with gradio.Blocks():
        view = Previews(service)

    def shown() -> list[list[str]]:
        news = view.previews(job)
        both = [news[view.earlier], news[view.latest]]
        assert all(one.visible == bool(one.constructor_args["value"]) for one in both)
        return [[caption for _, caption in one.constructor_args["value"]] for one in both]

    assert shown() == [[], []]
    for step in range(0, 1000, 10):
        job.previews[step] = [job.folder / f"{step}_{number}.png" for number in range(2)]
        for path in job.previews[step]:
            Image.new("RGB", (8, 8)).save(path)
    earlier, latest = shown()
    assert latest == ["step 990", "step 990"]
    assert len(earlier) == SHOWN
    assert (earlier[0], earlier[-1]) == ("step 0", "step 980")
    for path in job.previews[0]:
        path.unlink()  # the subject went elsewhere
    assert shown()[0][0] != "step 0"


def test_photographs_are_not_shown_to_those_who_share_the_page(service: StudioService, job: TrainingJob) -> None:
    with gradio.Blocks():
        view = Previews(service)
    assert len(view.pictures(job)[view.own].constructor_args["value"]) == 1
    service.import_export.folders = False  # others can reach the page
    assert view.pictures(job)[view.own].visible is False
