"""Drawing: arrays, names and colors in; PIL images or PNG bytes out. Knows nothing of models and files.

`legend` puts a legend beside an image, `overlay` draws a label map over one, `sheet` lays out images with ground truth
and prediction, `charts` draws matplotlib figures. Texts may come from untrusted files; they are cleaned before drawing.
"""
