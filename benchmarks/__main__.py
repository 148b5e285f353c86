"""`python -m benchmarks [name ...]`: measure the rows, print them, write benchmarks/results/."""

import importlib.util
import statistics
import sys

from benchmarks.harness import measure, save
from benchmarks.rows import ROWS
from resid.data.official import has_official


def main() -> None:
    """Measure the named rows, or all; exit 1 when one breaks its limits."""
    known = {row.name: row for row in ROWS}
    wanted = sys.argv[1:] or list(known)
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    failed = False
    for name in wanted:
        if known[name].official and not has_official(known[name].official):
            print(f"{name}: left out, its data are not here: RESID_DATA has to name their folder")
            continue
        if known[name].needs and importlib.util.find_spec(known[name].needs) is None:
            print(f"{name}: left out, {known[name].needs} is not installed: the extra `bench` brings it")
            continue
        result = measure(known[name])
        save(result)
        ours = result["sides"]["ours"]
        print(
            f"{name}: {result['ratio']:.3g} times the peer's speed per {result['unit']}; ours "
            f"{statistics.median(ours['seconds']):.3g} s, {ours['peak_gib']:.2f} GiB"
        )
        for side in result["sides"].values():
            if "quality" in side:
                print(f"  {side['what']}: {side['quality']}")
        for problem in result["problems"]:
            print(f"  BEYOND ITS LIMIT: {problem}")
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
