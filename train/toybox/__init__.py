"""The toybox in training: a data source (`source.py`), and two tasks that only a world has."""
