"""What people have in a folder is used, or named with the reason."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.images.photo_formats import HEIC, RAW, VIDEO
from coeff_diffusion.training import picture_folder as folders
from coeff_diffusion.training.picture_folder import PictureFolder, find_pictures, scan, sort_files


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, format="PNG")
    return path


def names(found: PictureFolder) -> list[str]:
    return [path.name for path in found.paths]


def left_out(found: PictureFolder) -> dict[str, list[str]]:
    return {reason: [path.name for path in paths] for reason, paths in found.left_out.items()}


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.JPG", "1.webp", "1².png"):
        picture(tmp_path / name)
    assert names(find_pictures(tmp_path)) == ["1.webp", "1².png", "2.JPG", "10.png"]


def test_a_list_of_files_stays_in_order(subject_images: Path) -> None:
    files = [str(subject_images / "3.jpeg"), subject_images / "0.png"]
    (subject_images / "3.txt").write_text("a dog")
    found = find_pictures(files)
    assert found.paths == [Path(files[0]), files[1]]
    assert [one.caption for one in found.pictures] == [subject_images / "3.txt", None]
    assert found.left_out == {}
    assert find_pictures(subject_images / "0.png").paths == [subject_images / "0.png"]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no pictures in .* \(it holds nothing\)"):
        find_pictures(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"it holds notes\.txt: there is no picture of that name"):
        find_pictures(tmp_path)
    picture(tmp_path / "10_sks dog" / "1.png")
    with pytest.raises(DatasetError, match=r"10_sks dog/: only the folder itself is read; name the one that is meant"):
        find_pictures(tmp_path)
    with pytest.raises(DatasetError, match="no such folder of pictures: .*nowhere"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no such picture: .*gone\.png"):
        find_pictures([tmp_path / "gone.png"])
    with pytest.raises(DatasetError, match=r"10_sks dog: a list names pictures, not folders; give one folder, or its"):
        find_pictures([tmp_path / "10_sks dog" / "1.png", tmp_path / "10_sks dog"])
    with pytest.raises(DatasetError, match="the list of pictures is empty"):
        find_pictures([])


HEIC_BYTES = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_everything_left_out_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {kind: one for kind, one in Image.OPEN.items() if kind != "HEIF"})
    picture(tmp_path / "IMG_1.JPG")
    picture(tmp_path / "sub" / "9.png")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / "8-masklabel.png")
    picture(tmp_path / "IMG_1-condlabel.png")
    for name, content in {
        "IMG_2.HEIC": HEIC_BYTES, "IMG_3.jpg": HEIC_BYTES, "IMG_2.txt": b"a dog", "a.CR2": b"II*\0", "b.MOV": b"x",
        ".DS_Store": b"x", "Thumbs.db": b"x", "._IMG_1.JPG": b"x", "IMG_1.xmp": b"x", "IMG_1.AAE": b"x",
        "doc.pdf": b"%PDF", "metadata.parquet": b"PAR1", "latents.npz": b"PK", "IMG_1.caption": b"a dog",
        "IMG_1.txt": b"a dog",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    found = find_pictures(tmp_path)
    assert names(found) == ["IMG_1.JPG"]
    assert left_out(found) == {
        HEIC: ["IMG_2.HEIC", "IMG_3.jpg"],
        RAW: ["a.CR2"],
        VIDEO: ["b.MOV"],
        folders.SYSTEM: ["._IMG_1.JPG", ".DS_Store", ".hidden.png", "Thumbs.db"],
        folders.LEFT_FOLDER: ["sub"],
        folders.NO_REGULAR: ["link.png", "pipe.png"],
        folders.UNREAD_CAPTION: ["IMG_1.AAE", "IMG_1.xmp"],
        folders.NO_PICTURE: ["doc.pdf", "latents.npz", "metadata.parquet"],
        folders.A_CONDITION: ["IMG_1-condlabel.png"],
        folders.NO_MASK: ["8-masklabel.png"],
        folders.LONELY: ["IMG_2.txt"],
        folders.SECOND_CAPTION: ["IMG_1.caption"],
    }
    everything = " ".join(found.said())
    assert (
        "left out 2 files (IMG_2.HEIC, IMG_3.jpg): HEIC photos are read with the extra heif: pip install" in everything
    )
    assert "left out sub/: only the folder itself is read" in everything
    assert all(path.name in everything for path in tmp_path.iterdir() if path.name not in ("IMG_1.JPG", "IMG_1.txt"))


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for number in range(30):
        (tmp_path / f"{number}.dat").touch()
    (line,) = find_pictures(tmp_path).said()
    assert line.startswith("left out 30 files (0.dat, 1.dat,")
    assert line.endswith("7.dat and 22 more): no picture")


def test_pictures_under_other_names_are_pictures(tmp_path: Path) -> None:
    for name in ("photo", "image.jpg_large", "a.tmp", "b.dat"):
        picture(tmp_path / name)
    assert sorted(names(find_pictures(tmp_path))) == ["a.tmp", "b.dat", "image.jpg_large", "photo"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"1.txt": "kohya, OneTrainer, ai-toolkit"}, "kohya, OneTrainer, ai-toolkit"),
        ({"1.caption": "kohya"}, "kohya"),
        ({"1.png.txt": "called after the whole name"}, "called after the whole name"),
        ({"1.TXT": "upper case"}, "upper case"),
        ({"1.json": '{"caption": "ai-toolkit"}'}, "ai-toolkit"),
        ({"metadata.jsonl": '{"file_name": "1.png", "text": "imagefolder"}'}, "imagefolder"),
        ({"metadata.jsonl": '\n{"file_name": "1.png", "prompt": "other column", "seed": 3}\n'}, "other column"),
        ({"metadata.jsonl": '{"file_name": "1.png", "text": "Unicode\u2028has\x85more"}\r\n'}, "Unicode has more"),
        ({"metadata.csv": 'file_name,text\n1.png,"commas, quoted"\n'}, "commas, quoted"),
        ({"1.txt": "own", "1.caption": "other"}, "own"),
        ({"1.txt": "own", "metadata.jsonl": '{"file_name": "1.png", "text": "table"}'}, "own"),
        ({"2.txt": "of another"}, None),
    ],
)
def test_captions_in_the_spellings_of_others(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    picture(tmp_path / "1.png")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (found,) = find_pictures(tmp_path).pictures
    words = found.words()
    assert (None if words is None else words.text) == expected


def test_names_agree_however_they_are_written(tmp_path: Path) -> None:
    picture(tmp_path / "IMG_1.JPG")
    (tmp_path / "img_1.txt").write_text("case")
    picture(tmp_path / "caf\u00e9.png")  # one letter; the caption's name has two, as Macs write them
    (tmp_path / "cafe\u0301.txt").write_text("accent")
    picture(tmp_path / "A.png")
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("exactly")
    found = {one.path.name: one.caption for one in find_pictures(tmp_path).pictures}
    assert found["IMG_1.JPG"] == tmp_path / "img_1.txt"
    assert found["caf\u00e9.png"] == tmp_path / "cafe\u0301.txt"
    assert (found["A.png"], found["a.jpg"]) == (None, tmp_path / "a.txt")


@pytest.mark.parametrize(
    "mask",
    [
        *("1-masklabel.png", "1-MaskLabel.PNG", "1_mask.png", "1-mask.jpg", "1.mask.png"),
        *("masks/1.png", "mask/1.jpg", "Masks/1.png"),
    ],
)
def test_masks_are_no_pictures(tmp_path: Path, mask: str) -> None:
    picture(tmp_path / "1.jpg")
    picture(tmp_path / "2.jpg")
    path = picture(tmp_path / mask, "white")
    found = find_pictures(tmp_path)
    assert names(found) == ["1.jpg", "2.jpg"]
    assert [one.mask for one in found.pictures] == [path, None]
    assert found.left_out == {}


def test_a_name_alone_makes_no_mask(tmp_path: Path) -> None:
    """A dog that wears a mask is a picture, unless there is the same without."""
    picture(tmp_path / "dog_mask.png")
    picture(tmp_path / "_mask.png")
    assert sorted(names(find_pictures(tmp_path))) == ["_mask.png", "dog_mask.png"]


def test_of_several_masks_one_counts_and_the_rest_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    for name in ("1-masklabel.png", "1_mask.png", "masks/1.png", "masks/7.png", "masks/.DS_Store"):
        picture(tmp_path / name)
    found = find_pictures(tmp_path)
    assert found.pictures[0].mask == tmp_path / "1-masklabel.png"
    assert left_out(found) == {
        folders.NO_MASK: ["7.png"],
        folders.SYSTEM: [".DS_Store"],
        folders.SECOND_MASK: ["1_mask.png", "1.png"],
    }


def test_lines_of_a_table_without_a_picture_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    rows = [f'{{"file_name": "{name}", "text": "a dog"}}' for name in ("1.png", "2.png", "train/1.png", "../1.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    (line,) = find_pictures(tmp_path).said()
    assert line.startswith("left out 3 files (2.png (metadata.jsonl, line 2), ")


def test_of_several_lines_for_a_picture_the_first_counts_and_the_rest_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    rows = [f'{{"file_name": "1.png", "text": "{text}"}}' for text in ("a cat", "a cat asleep", "a cat, too")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    found = find_pictures(tmp_path)
    words = found.pictures[0].words()
    assert words is not None
    assert words.text == "a cat"
    assert left_out(found) == {
        folders.SECOND_CAPTION: [f"1.png (metadata.jsonl, line {line})" for line in (2, 3)],
    }


@given(st.data())
def test_each_file_is_used_or_named(data: st.DataObject) -> None:
    """Nothing gets lost, whatever lies together and in whichever order."""
    stems = ("1", "2", "1-masklabel", "2_mask", "1.png", ".x", "metadata", "Thumbs")
    endings = (".png", ".jpg", ".txt", ".caption", ".json", ".db", ".heic", ".dat", ".jsonl", "")
    chosen = data.draw(st.sets(st.sampled_from([stem + ending for stem in stems for ending in endings]), max_size=12))
    place = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"coeff-test-folder-{os.getpid()}"
    place.mkdir(exist_ok=True)
    try:
        for name in chosen:
            if name.endswith((".png", ".jpg")):
                picture(place / name)
            else:
                (place / name).write_text('{"file_name": "1.png", "text": "x"}')
        entries = list(place.iterdir())
        random.Random(0).shuffle(entries)
        for found in (scan(place), sort_files(entries)):
            used = [file for one in found.pictures for file in (one.path, one.caption, one.mask)]
            seen = {file.name for file in used if isinstance(file, Path)}
            seen |= {path.name for paths in found.left_out.values() for path in paths}
            missing = chosen - seen
            assert missing <= {"metadata.jsonl"}
            assert len(found.paths) == len(set(found.paths))
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
