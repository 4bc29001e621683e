"""Drawing: arrays, names and colors in; PIL images or PNG bytes out. Knows nothing of models and files.

`legend` puts a legend beside an image, `sheet` lays out images with ground truth and prediction, `charts` draws
matplotlib figures. Texts may come from untrusted files: each is cleaned and shortened before it is drawn.
"""
