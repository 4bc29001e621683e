"""Image files and arrays become what the network and the datasets need.

In come paths, PIL images and arrays. Out go RGB arrays (`reading`), normalized tensors (`preprocess`) and masks of
class values (`masks`). `reading` and `masks` do without torch.
"""

from isanet.images.reading import MAX_PIXELS, SUFFIXES, RGBImage, images_in, read_image

__all__ = ["MAX_PIXELS", "SUFFIXES", "RGBImage", "images_in", "read_image"]
