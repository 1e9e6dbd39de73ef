"""``python -m infoprune_rt``, for launchers such as accelerate's."""

from infoprune_rt.cli import main

main()
