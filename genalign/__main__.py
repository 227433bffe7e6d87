"""`python -m genalign` and `accelerate launch -m genalign`."""

import sys

from genalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
