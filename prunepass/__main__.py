"""Run the command line as `python -m prunepass`."""

import sys

from prunepass.cli import main

if __name__ == "__main__":
    sys.exit(main())
