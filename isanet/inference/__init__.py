"""Inference: images and a loaded model go in, label maps come out.

`segmenter` is what users call; `segmentation` is its result, `regions` its outlines and run lengths; `outputs` decides
which image becomes which files.
Underneath, `predict` takes prepared images through a network by a protocol, `logits` resizes and averages what the
network returns, and `network` says what a network must offer. `fast` makes the inference-optimized copy of a model.

Nothing is imported here, because `outputs` and `segmentation` do without torch.
"""
