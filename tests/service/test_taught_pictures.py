"""The pictures of a training beside its previews: the squares that it sees, few and small."""

from pathlib import Path

from PIL import Image

from coeff_diffusion.service import TrainingJob
from coeff_diffusion.service.taught_pictures import MOST, SIDE, taught_pictures
from coeff_diffusion.training.config import TrainConfig


def test_they_are_those_that_training_sees(tmp_path: Path) -> None:
    folder = tmp_path / "rex" / "pictures"
    folder.mkdir(parents=True)
    halves = Image.new("RGB", (640, 320), "red")
    halves.paste("lime", (320, 0, 640, 320))
    for number in range(MOST + 2):
        halves.save(folder / f"{number:03d}.png")
    (folder / "000.txt").write_text("a dog")
    config = TrainConfig(output_dir=str(folder.parent), center_crop=True, crop_boxes={"001.png": [0.5, 0, 1, 1]})
    found = taught_pictures(TrainingJob(1, "rex", config), 300)
    assert [picture.size for picture in found] == [(SIDE, SIDE)] * MOST
    left = [picture.getpixel((4, SIDE // 2)) for picture in found]
    assert left == [(255, 0, 0), (0, 255, 0), *[(255, 0, 0)] * (MOST - 2)]
    assert taught_pictures(TrainingJob(1, "rex", config), 32)[0].size == (32, 32)

    folder.parent.rename(tmp_path / "tom")  # as the library renames subjects
    assert taught_pictures(TrainingJob(1, "rex", config), 300) == ()
