"""Many runs whose results belong together, and who carries them out."""
