"""The compact 7B tower on the CPU: our C++ kernels against PyTorch, transformers' dense tower, OpenVINO, ONNX Runtime.

What is compared shares one set of weights and one input, is checked against the float32 tower before anything is timed,
and runs in turns.
"""
