"""What `generate` is given beside its base: pictures to start from and to be held to, a ControlNet, a refiner."""

from dataclasses import replace

from ..images.control_picture import read_control
from ..images.start_picture import StartPicture, read_mask, read_start
from ..inference.replay import Replay
from ..inference.request import DrawRequest, RefinerName, StudioError
from ..inference.studio import Studio


def started(
    request: DrawRequest, replay: Replay | None, init_image: str | None, mask: str | None
) -> tuple[DrawRequest, list[str]]:
    """The request with the picture to start from that is given, and notes for the user.

    Raises:
        StudioError: there is a mask alone, or none of the two where the replay was drawn from one.
        PictureError, DatasetError: it cannot be read, or the mask does not fit.
    """
    if init_image is not None:
        start, notes = read_start(init_image, mask)
    elif replay is not None and replay.lacks_start:
        raise StudioError(
            f"{replay.path} was drawn from a picture that it does not carry; give it with --init_image, and with "
            "--mask if there was one"
        )
    elif mask is None:
        return request, []
    elif request.start is None:
        raise StudioError("--mask says what of --init_image is drawn anew; give both")
    else:
        start, notes = StartPicture(request.start.image, read_mask(mask)), []
    if replay is not None:
        size = (request.width, request.height)
        again = start if None in size else start.fitted((request.width or 0, request.height or 0))
        if replay.parameters.start_digits != again.digits:
            notes.append(f"{replay.path} was not drawn from this picture; it will not be the same")
    return replace(request, start=start), notes


def controlled(
    request: DrawRequest, replay: Replay | None, control_image: str | None, source: str | None, studio: Studio
) -> tuple[DrawRequest, list[str]]:
    """The request with the control picture and the ControlNet that are given, and notes for the user.

    Args:
        source: the ControlNet: a folder, file or Hub id.

    Raises:
        StudioError: one of the two is lacking, or the ControlNet does not fit.
        DatasetError: the picture cannot be read.
    """
    lacks = replay is not None and replay.lacks_control
    if source is None:
        if replay is not None and replay.parameters.control_digits is not None:
            also = " and its picture with --control_image" if lacks and control_image is None else ""
            raise StudioError(
                f"{replay.path} was held to a picture by {replay.controlnet}; give it with --controlnet{also}"
            )
        if control_image is not None:
            raise StudioError("--control_image is what a ControlNet holds the drawing to; name that with --controlnet")
        return request, []
    notes = list[str]()
    if control_image is not None:
        control, notes = read_control(control_image, source)
    elif request.control is not None:
        control = replace(request.control, net=source, net_digits="")
    elif lacks:
        assert replay is not None
        raise StudioError(f"{replay.path} was held to a picture that it does not carry; give it with --control_image")
    else:
        raise StudioError("--controlnet holds the drawing to --control_image; give both")
    controlnet = studio.controlnet(control)
    if replay is not None:
        p = replay.parameters
        size = (request.width, request.height)
        again = control if None in size else control.fitted((request.width or 0, request.height or 0))
        if (p.control_digits, p.controlnet_hash) != (again.digits, controlnet.digits):
            notes.append(f"{replay.path} was not held to this picture by this ControlNet; it will not be the same")
    return replace(request, control=control), notes


def refined(
    request: DrawRequest, replay: Replay | None, source: str | None, studio: Studio
) -> tuple[DrawRequest, list[str]]:
    """The request with the refiner that is given, and notes for the user.

    Args:
        source: the refiner: a folder, file or Hub id.

    Raises:
        StudioError: the replay was finished by one and none is given, or another one; or it does not fit.
    """
    if source is None:
        if replay is not None and replay.refiner is not None:
            raise StudioError(f"{replay.path} was finished by {replay.refiner}; give it with --refiner")
        return request, []
    found = studio.refiner(RefinerName(source))
    asked = RefinerName(found.name, found.digits)
    if replay is None:
        return replace(request, refiner=asked), []
    if problem := replay.other_refiner(asked):
        raise StudioError(f"{problem}; give the one that it was finished by")
    if request.refiner_switch_at is None:
        request = replace(request, refiner_switch_at=replay.parameters.refiner_switch_at)
    elsewhere = replay.parameters.refiner_name is None
    notes = [f"{replay.path} was not finished by a refiner; it will not be the same picture"] if elsewhere else []
    return replace(request, refiner=asked), notes
