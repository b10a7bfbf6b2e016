"""Write tests/costs.json anew: what the codec costs, counted, and what tests/test_costs.py holds it to.

    python tools/count_costs.py

To be run when a cost has changed on purpose; the difference belongs into the commit that changed it. Needs valgrind and g++
(Debian, Ubuntu: apt install valgrind g++). Figures in seconds are the benchmark's, not these.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from costs.guards import all_counts
from hpcm_codec.errors import HpcmError
from hpcm_codec.system.files import write_atomically

COSTS = Path(__file__).resolve().parents[1] / "tests" / "costs.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=COSTS)
    options = parser.parse_args(arguments)
    try:
        text = json.dumps(all_counts(), indent=1) + "\n"
        write_atomically(options.output, text.encode(), overwrite=True)
    except HpcmError as error:
        print(f"count_costs: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
