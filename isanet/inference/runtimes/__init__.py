"""Other runtimes than torch: the network as an ONNX graph, run by OpenVINO or ONNX Runtime.

Each is a `isanet.inference.network.Network`: normalized images go in, coarse logits come out.
"""
