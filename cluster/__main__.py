"""`python -m cluster`: what launch.sh hands over to."""

import sys

from cluster.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
