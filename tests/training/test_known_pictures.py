"""Whether a base knows such pictures: drawn ones and others on the embedded base, and what a run says of them."""

from pathlib import Path

import pytest
import torch
from training_runs import photographs

from coeff_diffusion import Coefficients, load_base
from coeff_diffusion.families.errors import BaseModelError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.service import SubjectLoader, TrainingForm, TrainingQueue
from coeff_diffusion.service.library_view import LibraryView
from coeff_diffusion.service.thumbnails import best_sample, stand_in
from coeff_diffusion.sources.library import Library
from coeff_diffusion.subject.info import UNKNOWN, not_learned
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.known_pictures import FILE, KnownPictures, known_pictures, strangeness
from coeff_diffusion.training.trainer import train

EXAMPLES = Path(__file__).parents[2] / "examples" / "subjects"
MARGIN = 1.3


@pytest.fixture(scope="module")
def embedded():
    return load_base()


@pytest.fixture
def queue(embedded, tmp_path):
    queue = TrainingQueue(SubjectLoader(Studio(embedded), Library(tmp_path / "subjects")))
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("subject", sorted(path.name for path in EXAMPLES.iterdir()))
def test_drawn_pictures_are_known_to_the_embedded_base(queue, subject: str) -> None:
    assert not [note for note in queue.check(sorted((EXAMPLES / subject).glob("*.png"))).notes if "photos" in note]


def test_photographs_are_told_before_any_training_with_the_way_out(queue, photos) -> None:
    note = queue.check(photos, class_word="dog").notes[0]
    assert note.startswith("these look like photos; the embedded base knows drawn things only")
    assert "Stable Diffusion 1.5" in note
    assert "--pretrained_model_name_or_path" in note
    assert float(note.partition(" times as far")[0].rpartition(" ")[2]) > MARGIN * UNKNOWN


def test_a_run_that_cannot_draw_its_subject_claims_no_success(queue, photos) -> None:
    settings = {"max_train_steps": 1, "train_batch_size": 1, "validation_steps": 1, "num_validation_images": 1}
    job = queue.submit(TrainingForm(photos, "grain", "dog", settings=settings))
    while not job.over:
        job.stop.wait(0.05)
    assert job.status(0).startswith("grain has ended at step 1 of 1, but the subject was not learned")
    assert job.report(0)["advice"] == job.advice != ""
    warned = next(i for i, line in enumerate(job.messages) if line.startswith("warning: these look like photos"))
    assert warned < next(i for i, line in enumerate(job.messages) if line.startswith("teaching "))
    assert not any("better)" in line for line in job.messages)
    assert f"warning: {job.advice}" in job.messages
    info = Coefficients.load(job.folder).info
    assert not_learned(info.strangeness)
    card = (job.folder / "README.md").read_text()
    assert "**Not learned:**" in card
    assert "samples/" not in card

    view = LibraryView(queue.loader.studio, queue.loader.library)
    entry = view.entry("grain")
    assert best_sample(job.folder, entry.sha256) is not None  # it is there, to be looked at
    assert view.picture(entry).tobytes() == stand_in().tobytes()  # and stands for nothing
    assert entry.remark == f"It was not learned: {not_learned(info.strangeness)}"


def test_a_base_without_figures_is_not_asked(tiny_pipe, subject_images, tmp_path) -> None:
    assert known_pictures(tiny_pipe) is None
    config = TrainConfig(
        instance_data_dir=str(subject_images), class_word="dog", output_dir=str(tmp_path / "out"), max_train_steps=1,
        validation_steps=0,
    )  # fmt: skip
    result = train(config, tiny_pipe, say=lambda line: None)
    assert result.effect.strangeness is None
    assert "strangeness" not in result.effect.to_dict()


def test_figures_of_a_folder_are_read_and_checked(tiny_pipe, tmp_path) -> None:
    tiny_pipe.register_to_config(_name_or_path=str(tmp_path))
    known = KnownPictures("maps", (0.1, 0.5), (0.5, 0.25))
    (tmp_path / FILE).write_text(known.to_json())
    assert known_pictures(tiny_pipe) == known
    assert strangeness(known, torch.tensor([[0.5, 1.5], [0.25, 0.25]])) == 1.5
    for text in ("", "[]", '{"kind":"x","levels":[0.1],"losses":[]}', '{"kind":"x","levels":[2],"losses":[1]}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(BaseModelError, match="known_pictures.json says nothing"):
            known_pictures(tiny_pipe)
