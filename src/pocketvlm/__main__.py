"""`python -m pocketvlm`."""

import sys

from pocketvlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
