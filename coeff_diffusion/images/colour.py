"""Colours as a picture's own profile means them -> sRGB, which is what models and screens take them for."""

import io

from PIL import Image, ImageCms

# Which colours a profile may be of, as ICC spells them, for what the pixels are.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Colours without transparency as sRGB.

    Args:
        image: of mode RGB, L, CMYK or LAB.
        profile: the ICC profile in its file; None where it has none, then RGB and L are sRGB already.

    Returns:
        The picture in mode RGB, and in a few words why the profile was not used where it was not.
    """
    note = None
    if profile is not None:
        try:
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile))), None
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
            reason = " ".join(str(error).split())[:100] or "damaged"
            note = f"its colour profile cannot be used ({reason}); its colours are taken as they stand"
    if image.mode == "LAB":
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), note
    return image.convert("RGB"), note


def _converted(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    """As Photoshop and browsers do it: relative colorimetric, with black point compensation."""
    found = source.profile.xcolor_space.strip()
    if image.mode == "L" and found == "RGB":  # grey, as a program saved it that knows colours alone
        image = image.convert("RGB")
    expected = _SPACES[image.mode]
    if found != expected:
        raise ValueError(f"it is of {found} colours, the picture of {expected}")
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    changed = ImageCms.profileToProfile(
        image,
        source,
        target,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert changed is not None  # it is None only where the picture is changed in place
    return changed
