"""Results of other programs: each format is a module with `read`, which returns `Series`."""
