"""What was compiled is kept where that is possible, and had in any case."""

from pathlib import Path

import pytest

from coeff_diffusion.method.kernels import sealed_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "coeff-diffusion"


def test_made_once_and_again_where_it_was_damaged(cache: Path) -> None:
    assert sealed_cache.kept("x.cubin", 100, lambda: b"made") == b"made"
    assert sealed_cache.kept("x.cubin", 100, lambda: b"other") == b"made"
    (cache / "y.cubin").write_bytes((cache / "x.cubin").read_bytes())
    assert sealed_cache.kept("y.cubin", 100, lambda: b"other") == b"other"  # sealed under another name
    (cache / "x.cubin").write_bytes((cache / "x.cubin").read_bytes()[1:])
    assert sealed_cache.kept("x.cubin", 100, lambda: b"again") == b"again"
    assert sealed_cache.kept("x.cubin", 3, lambda: b"smaller") == b"smaller"


@pytest.mark.parametrize("trouble", ["others may write", "no place", "no writing"])
def test_it_is_had_without_a_cache(trouble: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if trouble == "others may write":
        cache.mkdir()
        cache.chmod(0o777)
    elif trouble == "no place":
        cache.write_text("a file")
    else:
        Path(sealed_cache.folder() / "x.cubin").mkdir()  # nothing can be renamed into its place
    for _ in range(2):
        assert sealed_cache.kept("x.cubin", 100, lambda: b"made") == b"made"
    assert not list(cache.parent.rglob("*.tmp"))
