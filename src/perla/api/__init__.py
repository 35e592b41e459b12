"""The Python API: the functions and classes that `perla` exports."""
