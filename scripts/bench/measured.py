"""Run a command, and print the CPU seconds that it and its children took, as the last line."""

from __future__ import annotations

import resource
import subprocess
import sys

done = subprocess.run(sys.argv[1:], check=False)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
sys.exit(done.returncode)
