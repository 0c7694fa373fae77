"""Whether one-shot algorithms stand to each other as they should: five seeds of four divisions of the digits data.

    python scripts/bench/oneshot.py [--out DIR] [options of `starling bench oneshot`]

Prints one table of claims, each with what it must be, what it is, and whether it holds; ends with 3 where one does not.
The first run takes long, because nothing is left out; what the folder holds already is not solved again.
"""

from __future__ import annotations

import sys

from node.cli.main import main

if __name__ == "__main__":
    main(["bench", "oneshot", "--preset", "orderings", "--check", "--out", "runs/oneshot-orderings", *sys.argv[1:]])
