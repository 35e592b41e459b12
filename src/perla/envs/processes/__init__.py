"""Environments of the host in processes of their own."""
