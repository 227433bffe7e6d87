"""`python -m genalign` and `accelerate launch -m genalign`."""

import sys

from genalign.cli.main import main

if __name__ == "__main__":
    code = main()
    ranks = sys.modules.get("genalign.ranks")  # imported by every verb that can have joined a process group
    if ranks is not None and ranks.world() > 1:
        ranks.leave(code)
    sys.exit(code)
