"""Search of a method's settings, on seeds of its own."""
