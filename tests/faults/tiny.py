"""The command `perla`, with the environments of the tests as the family `tiny`."""

import sys

from perla.cli import main
from perla.envs import registry

registry.FAMILIES["tiny"] = "host_envs"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
