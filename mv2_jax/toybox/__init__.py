"""The procedural world that the shipped weights are trained on: renderer, captions, judge."""
