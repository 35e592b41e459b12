"""Environments: their interfaces, the built-in ones, and bridges to other libraries."""
