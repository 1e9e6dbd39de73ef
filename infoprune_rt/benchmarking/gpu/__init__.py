"""The kernels and the compact 7B tower on a GPU, against PyTorch's best, and ``make gpu``, which does all of it.

What is compared shares its inputs and weights, is checked against a higher precision before anything is timed, and runs
in turns. On the CPU the same code runs with plain operators and a wall clock, at toy sizes, for its tests.
"""
