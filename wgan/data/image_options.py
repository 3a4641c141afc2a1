"""How an image becomes bytes, and where its class is."""

import re
from dataclasses import dataclass

Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # the values that become black and white


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes bytes `(C, H, W)`.

    `size` is the height and width; None: the data's own. `grey` converts to one channel, and
    `alpha` keeps transparency as a fourth one. `range` contains the values that become black and
    white; None: the minimum and maximum of all images that are not of 8 bits, and 0 and 255.
    `label_column` is the column with the classes in a file of labels; empty: `label`.
    """

    size: Size | None = None
    grey: bool = False
    alpha: bool = False
    range: Range | None = None
    label_column: str = ""

    def shape(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The shape `(C, H, W)` of images whose own shape is `own`."""
        return (4 if self.alpha else 1 if self.grey else own[0], *(self.size or own[1:]))


def parse_image_size(text: str) -> Size | None:
    """Parse "64" to (64, 64), "64x96" to (64, 96), "" to None; ValueError for anything else."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"image size {text!r} is neither a side (64) nor height x width (64x96)")
    return height, width
