"""What a run writes on the way by itself; whole runs that are killed or lose their folder: `test_trainer`."""

import errno
from pathlib import Path

import pytest
from subject_maker import of_stable_diffusion

from coeff_diffusion import Coefficients
from coeff_diffusion.training.checkpoint import CheckpointError
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.keeping import Keeping
from coeff_diffusion.training.run_folder import RunFolder


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    config = TrainConfig(max_train_steps=25, timeline_steps=10)
    found = Keeping(RunFolder(tmp_path / "run"), config)
    found.output.path.mkdir()
    found.remember_folder()
    return found


def test_which_steps_are_kept(keeping: Keeping) -> None:
    assert [step for step in range(1, 26) if keeping.keeps(step, is_measured=step == 7)] == [7, 10, 20, 25]
    keeping.config = TrainConfig(timeline_steps=0)
    assert not any(keeping.keeps(step, is_measured=True) for step in (7, 10, 300))


def test_a_run_finds_its_steps_again_up_to_where_it_goes_on(keeping: Keeping) -> None:
    subject = of_stable_diffusion(effect=0.5)
    for step in (7, 10, 20):
        keeping.keep(step, subject, [0.1] * step, {0: 0.2, 7: 0.15})
    again = Keeping(keeping.output, keeping.config)
    again.resume(15, is_measured=lambda step: step == 7)
    assert list(again.timeline) == [7, 10]
    assert again.subject_of(7) == subject
    again.check_has([0, 7, 10])
    with pytest.raises(CheckpointError, match=r"does not hold the subject of step 20, which may be the best one"):
        again.check_has([0, 7, 20])


def test_only_one_process_writes(keeping: Keeping) -> None:
    other = Keeping(keeping.output, keeping.config, is_main=False)
    other.keep(10, of_stable_diffusion(), [0.1] * 10, {})
    assert list(other.timeline) == [10]
    assert not keeping.output.timeline.exists()


def test_what_is_learned_is_rescued(keeping: Keeping) -> None:
    full, subject = OSError(errno.ENOSPC, "No space left on device", "a file"), of_stable_diffusion()
    run = keeping.output
    assert str(keeping.rescue(0, lambda: subject, full)) == (
        "training ended at step 0: No space left on device (a file); nothing was learned yet"
    )
    assert str(keeping.rescue(3, lambda: subject, full)).endswith(f"subject of step 3 is saved in {run.coefficients}")
    assert Coefficients.load(run.coefficients) == subject
    run.path.rename(run.path.with_name("moved"))
    with pytest.raises(FileNotFoundError, match="its folder was deleted, moved or replaced"):
        keeping.check_folder()
    run.path.mkdir()  # somebody else's now
    with pytest.raises(FileNotFoundError):
        keeping.check_folder()
    assert "could not be saved either" in str(keeping.rescue(3, lambda: subject, full))
    assert list(run.path.iterdir()) == []
