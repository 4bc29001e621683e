"""Models as files for other runtimes: a loaded model goes in; .onnx, .xml (OpenVINO) and .pt2 (torch.export) come out.

`write.export` makes a file, compares it with the model, and only then puts it in place.
"""
