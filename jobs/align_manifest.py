"""`python -m jobs.align_manifest ARGS` is `homoalign run ARGS`, so that `ray job submit` needs no installed script."""

from __future__ import annotations

import sys

from jobs.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]], prog_name="homoalign")
