"""Image files and arrays become what the network and the datasets need.

In come paths, files, PIL images and arrays. Out go RGB arrays (`reading`), the images of a `folder`, normalized tensors
(`preprocess`) and masks of class values (`masks`). All but `preprocess` do without torch.
"""

from isanet.images.folder import images_in
from isanet.images.reading import MAX_PIXELS, SUFFIXES, RGBImage, read_image

__all__ = ["MAX_PIXELS", "SUFFIXES", "RGBImage", "images_in", "read_image"]
