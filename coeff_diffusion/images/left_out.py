"""What other programs write of how a picture was drawn and nothing here can do: said, for the picture will differ."""

import re
from collections.abc import Mapping

from ..subject.errors import cut

MOST = 60  # keys that are named; the largest texts that people have seen have about as many
# Keys that change no pixel, or repeat what another one says.
HARMLESS = {
    "version", "app", "appversion", "swarmversion", "backend", "pipeline", "parser", "user", "createdby",
    "modelhash", "vaehash", "basemodelhash", "hashes", "civitairesources", "civitaimetadata", "createddate", "date",
    "timetaken", "time", "generationtime", "preptime", "images", "imagenumber", "nsamples", "batchcount", "requesttype",
    "signedhash", "software", "source", "title", "paramsversion", "hidedebugoverlay", "aspectratio", "sidelength",
    "metadatascheme", "fullprompt", "fullnegativeprompt", "originalprompt", "unusedparameters", "automaticvae",
    "controlaftergenerate",
    "isstarred", "filenameprefix", "previewmethod", "imageformat", "donotsave",
}  # fmt: skip
# Values with which a key changes nothing, beside those that say no: false, none, 0, an empty list.
USUAL = {
    "clipskip": ("1", "-1"),
    "clipstopatlayer": ("-1",),
    "stopatcliplayer": ("-1",),
    "denoisingstrength": ("1", "1.0"),
    "denoise": ("1", "1.0"),
    "strength": ("1", "1.0"),
    "uncondscale": ("1", "1.0"),
    "weight": ("1", "1.0"),
    "performance": ("quality", "speed"),
    "vae": ("automatic", "default (model)"),
    "generationmode": ("txt2img", "sdxl_txt2img"),
    "randdevice": ("cpu",),
    "type": ("txt2img",),
}
NO = {"", "0", "0.0", "none", "null", "false", "no", "disabled", "off", "[]", "{}", "()", "[none]"}


def left_out(fields: Mapping[str, str]) -> list[str]:
    """One sentence that names what may have changed the picture; empty where there is nothing to name.

    Args:
        fields: what other programs have said and is not taken, by their own keys.
    """
    named = [f"{cut(key, 40)} {_short(value)}".strip() for key, value in fields.items() if _matters(key, value)]
    if not named:
        return []
    more = f" and {len(named) - MOST} more" if len(named) > MOST else ""
    return [f"it was drawn with settings that are not here, so it will look different: {', '.join(named[:MOST])}{more}"]


def folded(key: str) -> str:
    """A key without what programs spell differently: case, blanks, underscores."""
    return re.sub(r"[\W_]+", "", key.lower())


def _short(value: str) -> str:
    return "" if value.startswith(("{", "[")) else cut(" ".join(value.split()), 40)


def _matters(key: str, value: str) -> bool:
    name, said = folded(key), value.strip().lower()
    return name not in HARMLESS and said not in NO and said not in USUAL.get(name, ())
