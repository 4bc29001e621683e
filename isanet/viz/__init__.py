"""Drawing: arrays, names and colors in; PIL images or PNG bytes out. Knows nothing of models and files.

`legend` puts a legend beside an image, `overlay` draws a label map over one, `sheet` lays out images with ground truth
and prediction, `charts` draws matplotlib figures; `isanet.viz.attention`, of `heatmap`, draws what a position attends
to. Texts may come from untrusted files; they are cleaned before drawing.
"""

from isanet.viz.heatmap import attention

__all__ = ["attention"]


def __dir__() -> list[str]:
    return __all__
