"""The command `perla`, with the environments of the tests as the family `tiny`."""

import sys

import host_envs
import perla
from perla.cli import main

perla.register_environment("tiny", host_envs)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
