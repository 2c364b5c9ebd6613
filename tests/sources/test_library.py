import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.sources.library import Library, LibraryError


@pytest.fixture
def dog(tmp_path: Path) -> Path:
    path = tmp_path / "dog.safetensors"
    Coefficients({"mid_block.attn1": torch.eye(4)}, info=CoefficientsInfo("my dog", "sks dog", "dog")).save(path)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "outputs")


def test_a_run_is_listed_under_its_folder(library: Library, dog: Path) -> None:
    assert library.find() == {}
    run = library.folder / "my-run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".trash").mkdir()
    for name in ("coefficients", "timeline", "checkpoints/step_000010", ".trash/old"):
        shutil.copy(dog, run / f"{name}.safetensors")
    assert library.find() == {"my-run": run / "coefficients.safetensors"}


def test_adding_copies_under_a_free_name(library: Library, dog: Path, tmp_path: Path) -> None:
    subject = Coefficients.load(dog)

    def add(file_name: str, strength: float) -> str:
        subject.scaled(strength).save(tmp_path / file_name)
        return library.add(tmp_path / file_name)

    assert [library.add(dog), add("dog.safetensors", 0.5)] == ["dog", "dog-2"]
    assert list(library.find()) == ["dog", "dog-2"]
    assert Coefficients.load(library.path("dog-2")) == subject.scaled(0.5)
    assert add("..  ünï <b> $x.safetensors", 0.6) == "ünï-b-x"
    assert add(f"{'a' * 200}.safetensors", 0.7) == "a" * 80
    assert add("again.safetensors", 0.7) == "a" * 80  # the very same numbers: it is there already
    assert len(library.find()) == 4


def test_what_is_not_listed_is_refused(library: Library, dog: Path, tmp_path: Path) -> None:
    library.add(dog)
    for name in ("../dog", "cat", str(dog), ""):
        with pytest.raises(CoefficientsError, match=r"no subject '.*' in .*; there is 'dog'"):
            library.path(name)
    (tmp_path / "bad.safetensors").touch()
    with pytest.raises(CoefficientsError, match="it is an empty file"):
        library.add(tmp_path / "bad.safetensors")


@pytest.fixture
def run(library: Library, dog: Path) -> Path:
    """A run "my run" with what lies in one, beside a lone "dog"."""
    folder = library.folder / "my run"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "step_000010_0.png").touch()
    for name in ("my run/coefficients", "my run/timeline", "dog"):
        shutil.copy(dog, library.folder / f"{name}.safetensors")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_renaming_takes_a_run_as_a_whole_and_a_file_as_a_file(library: Library, run: Path) -> None:
    assert library.rename("my run", " Über हिन्दी-2_a.b ") == "Über हिन्दी-2_a.b"
    assert library.rename("dog", "Dog") == "Dog"
    assert files(library.folder) == {
        "Dog.safetensors",
        "Über हिन्दी-2_a.b/coefficients.safetensors",
        "Über हिन्दी-2_a.b/timeline.safetensors",
        "Über हिन्दी-2_a.b/samples/step_000010_0.png",
    }
    (library.folder / "pets").mkdir()
    library.path("Dog").rename(library.folder / "pets" / "Dog.safetensors")
    assert library.rename("pets/Dog", "cat") == "pets/cat"  # it stays in its folder
    assert list(library.find()) == ["pets/cat", "Über हिन्दी-2_a.b"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("n" * 9_000, "has 9,000 characters, expected at most 80"),
        ("𐌰" * 80, "200 bytes"),
        ("..", "starts with a dot"),
        (".hidden", "starts with a dot"),
        ("../dog", "holds '/'"),
        ("a/b", "holds '/'"),
        ("a\\b", r"holds '\\'"),
        ("C:dog", "holds ':'"),
        ("a\0b", r"holds '\x00'"),
        ("a\nb", r"holds '\n'"),
        ("a\ud800b", r"holds '\ud800'"),
        ("a\u202eb", r"holds '\u202e'"),
        ("<b>dog</b>", "holds '/', '<', '>'"),
        ("dog.", "ends with a dot"),
        ("dog.safetensors", "ends with a dot or .safetensors"),
        ("NUL", "is reserved"),
        ("com1.x", "is reserved"),
        ("timeline", "is reserved"),
        ("Coefficients", "is reserved"),
        ("checkpoints", "is reserved"),
        ("dog", "something called 'dog' beside it"),
        ("DOG", "something called 'DOG' beside it"),
        ("my run 2", "something called 'my run 2' beside it"),
    ],
)
def test_names_that_are_refused(library: Library, run: Path, name: str, why: str) -> None:
    (library.folder / "my run 2").mkdir()  # holds no subject (yet)
    before = files(library.folder)
    with pytest.raises(LibraryError) as error:
        library.rename("my run", name)
    assert why in str(error.value)
    assert files(library.folder) == before
    assert len(str(error.value)) < 200


def test_deleting_and_putting_back(library: Library, run: Path) -> None:
    before = files(library.folder)
    assert [library.delete("my run").name, library.delete("dog").name] == ["my run", "dog"]
    assert library.find() == {}
    assert len(files(library.folder)) == len(before)  # nothing is erased
    dog, my_run = library.deleted()  # the latest first
    assert [dog.name, my_run.name] == ["dog", "my run"]
    assert my_run.path.parents[1] == library.folder / ".trash"
    assert (my_run.path / "samples" / "step_000010_0.png").is_file()
    assert library.put_back(my_run.key) == "my run"
    assert library.put_back(dog.key) == "dog"
    assert files(library.folder) == before
    assert list((library.folder / ".trash").iterdir()) == library.deleted() == []


def test_putting_back_replaces_nothing(library: Library, run: Path, dog: Path) -> None:
    gone = library.delete("my run")
    shutil.copy(dog, library.folder / "My Run.safetensors")
    with pytest.raises(LibraryError, match="there is another 'my run' by now; rename that one first"):
        library.put_back(gone.key)
    library.rename("My Run", "other")
    library.put_back(gone.key)
    for key in (gone.key, "../../dog", "", "\0"):
        with pytest.raises(LibraryError, match="not in the trash any more"):
            library.put_back(key)


def test_the_same_name_is_deleted_twice(library: Library, dog: Path) -> None:
    for _ in range(2):
        library.add(dog)
        library.delete("dog")
    first, second = library.deleted()
    assert first.name == second.name == "dog"
    assert first.key != second.key
    assert library.put_back(second.key) == "dog"


def test_nothing_else_goes_with_a_run(library: Library, run: Path, dog: Path) -> None:
    shutil.copy(dog, run / "puppy.safetensors")
    for move in (library.delete, lambda name: library.rename(name, "x")):
        with pytest.raises(LibraryError, match="the folder of 'my run' also holds 'my run/puppy'"):
            move("my run")
    assert library.delete("my run/puppy").name == "my run/puppy"
    library.put_back(library.deleted()[0].key)
    assert "my run/puppy" in library.find()


def test_links_out_of_the_library_are_not_followed(library: Library, dog: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "run").mkdir(parents=True)
    for name in ("run/coefficients", "lone"):
        shutil.copy(dog, outside / f"{name}.safetensors")
    library.folder.mkdir()
    (library.folder / "folder").symlink_to(outside)
    (library.folder / "run").symlink_to(outside / "run")
    (library.folder / "lone.safetensors").symlink_to(outside / "lone.safetensors")
    before = files(outside)
    assert list(library.find()) == ["lone"]
    library.rename("lone", "other")  # the link itself is moved
    gone = library.delete("other")
    assert gone.path.is_symlink()
    assert files(outside) == before
    library.put_back(gone.key)
    assert (library.folder / "other.safetensors").is_symlink()

    shutil.move(library.folder / ".trash", outside / "trash")
    (library.folder / ".trash").symlink_to(outside / "trash")
    with pytest.raises(LibraryError, match="is a link that leads elsewhere"):
        library.delete("other")
    assert library.deleted() == []


def test_new_names_do_not_meet_what_is_there(library: Library, run: Path, dog: Path, tmp_path: Path) -> None:
    (library.folder / "my.run").mkdir()
    for name, expected in [("my.run", "my.run-2"), ("DOG", "DOG-2"), ("timeline", "timeline-2"), ("con", "con-2")]:
        assert library.put(Coefficients.load(dog), name) == expected
    assert library.free_name("\0../..\\<i>") == "i"
    assert library.free_name("𐌰" * 80) == "𐌰" * 50
    assert library.free_name("///") == "subject"


def test_letters_that_a_file_has_in_parts_are_those_that_people_type(library: Library, dog: Path) -> None:
    """Archives and disks of a Mac bring such names."""
    for name in ("cafe\u0301.safetensors", "re\u0301x/coefficients.safetensors"):
        (library.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dog, library.folder / name)
    assert [*library.find()] == ["caf\u00e9", "r\u00e9x"]
    assert library.path("caf\u00e9") == library.path("cafe\u0301") == library.folder / "cafe\u0301.safetensors"
    assert library.put(Coefficients.load(dog), "caf\u00e9") == "caf\u00e9-2"
    library.delete("caf\u00e9")
    library.put(Coefficients.load(dog), "caf\u00e9")
    with pytest.raises(LibraryError, match="there is another 'caf\u00e9' by now"):
        library.put_back(library.deleted()[0].key)
    with pytest.raises(LibraryError, match="there is something called 'r\u00e9x' beside it already"):
        library.rename("caf\u00e9", "re\u0301x")


def test_two_threads_add_two_subjects(library: Library, dog: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        subjects = [Coefficients.load(dog).scaled(1 + number / 8) for number in range(8)]
        names = list(pool.map(library.join, [*subjects, *subjects], ["dog"] * 16))
    assert sorted({*names}) == sorted(library.find())
    assert len(set(names)) == 8
