"""Fetch the emoji renders from npm and pack the frames the base needs into one archive.

    python tools/base/fetch.py --output .work/base/sprites.zip

The archive holds one WebP of 144 x 144 per frame and `index.json`: {"file", "name", "class", "frame", "held_out"} each.
Sources (all MIT): @lobehub/fluent-emoji-3d (still renders), @lobehub/fluent-emoji-anim-1 (animations),
unicode-emoji-json (names).
"""

import argparse
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from concepts import HELD_OUT, training_concepts
from PIL import Image
from tqdm import tqdm

PACKAGES = {
    "still": "@lobehub/fluent-emoji-3d@1.1.0",
    "animated": "@lobehub/fluent-emoji-anim-1@1.0.0",
    "names": "unicode-emoji-json@0.9.0",
}
SPRITE = 144  # pixels: an object is drawn at up to about 130 of a picture's 128
FRAMES = 16  # poses kept of each animation of a trained concept; every second frame of a held-out one


def npm_pack(package: str, folder: Path) -> tarfile.TarFile:
    """Download `package` with npm into `folder` (once) and open it."""
    name, version = package.rsplit("@", 1)
    archive = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    return tarfile.open(archive)


def read_assets(archive: tarfile.TarFile, wanted: set[str]) -> dict[str, bytes]:
    """The bytes of the WebP files whose code points are wanted."""
    assets = {}
    for member in archive:
        code = Path(member.name).stem
        if member.isfile() and member.name.endswith(".webp") and code in wanted:
            extracted = archive.extractfile(member)
            assert extracted is not None
            assets[code] = extracted.read()
    return assets


def spellings(emoji: str) -> list[str]:
    """The file names an emoji may have: with and without the variation selector."""
    plain = "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")
    return ["-".join(f"{ord(c):x}" for c in emoji), plain, f"{plain}-fe0f"]


def frames(data: bytes, most: int) -> Iterator[Image.Image]:
    """Up to `most` evenly spaced frames, cropped to a square and brought to the sprite's size."""
    with Image.open(io.BytesIO(data)) as picture:
        count = getattr(picture, "n_frames", 1)
        for index in range(min(most, count)):
            picture.seek(index * count // min(most, count))
            yield picture.convert("RGBA").resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)


def pack(downloads: Path, output: Path) -> int:
    """Write the archive beside its place and rename it there; returns the number of frames."""
    with npm_pack(PACKAGES["names"], downloads) as archive:
        member = archive.extractfile("package/data-by-emoji.json")
        assert member is not None
        emoji_of = {entry["name"]: emoji for emoji, entry in json.load(member).items()}
    concepts = [(name, word, unicode_name, False) for name, word, unicode_name in training_concepts()]
    concepts += [(name, word, unicode_name, True) for name, (word, unicode_name) in HELD_OUT.items()]
    wanted = {code for *_, unicode_name, _ in concepts for code in spellings(emoji_of[unicode_name])}
    with npm_pack(PACKAGES["still"], downloads) as archive:
        still = read_assets(archive, wanted)
    with npm_pack(PACKAGES["animated"], downloads) as archive:
        animated = read_assets(archive, wanted)

    index, partial = [], output.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as sprites:
        for name, word, unicode_name, held_out in tqdm(concepts, desc="packing sprites", unit="concept"):
            codes = spellings(emoji_of[unicode_name])
            poses = list(frames(next(still[code] for code in codes if code in still), 1))
            moving = next((animated[code] for code in codes if code in animated), None)
            if moving is not None:
                found = list(frames(moving, 36 if held_out else FRAMES))
                poses += found if len(found) > 1 else []  # a few "animations" are one still of another style
            for number, pose in enumerate(poses):
                buffer = io.BytesIO()
                pose.save(buffer, "WEBP", quality=92, method=4)
                file = f"{name.replace(' ', '_')}-{number:02d}.webp"
                sprites.writestr(file, buffer.getvalue())
                entry = {"file": file, "name": name, "class": word, "frame": number, "held_out": held_out}
                index.append(entry)
        sprites.writestr("index.json", json.dumps(index))
    partial.replace(output)
    return len(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(".work/base/sprites.zip"))
    parser.add_argument("--downloads", type=Path, default=Path(".work/base/downloads"))
    args = parser.parse_args()
    args.downloads.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    count = pack(args.downloads, args.output)
    print(f"{count} frames, {args.output.stat().st_size / 1e6:.1f} MB: {args.output}")


if __name__ == "__main__":
    main()
