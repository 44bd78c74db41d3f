"""What a ledger costs: milliseconds per added record, and seconds to open one that is full.

    python benchmarks/ledgers.py                                    # a journal and a SQLite file, in a temporary folder
    python benchmarks/ledgers.py --records 2000 postgresql://me@127.0.0.1/autoprune grpc://127.0.0.1:13000

A record is that of a search on a network with 28 groups. The records stay in the databases that were named.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from autoprune.ledger import Ledger
from autoprune.scheme import Scheme
from autoprune.storage import place
from autoprune.trial import Measurement


def main() -> None:
    """Print one line per ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="*", help="journal files or storage URLs; without any, a journal and SQLite")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--groups", type=int, default=28)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for where in options.ledgers or [f"{folder}/ledger.jsonl", f"sqlite:///{folder}/ledger.db"]:
            first, last, opening = measure(where, options.records, options.groups)
            name = where.partition(":")[0] if "://" in where else "journal"
            print(
                f"{name}: {first:.1f} ms per record at the start, {last:.1f} ms at the end of {options.records}; "
                f"opened again in {opening:.2f} s ({place(where) if options.ledgers else 'temporary'})",
                flush=True,
            )


def measure(where: Path | str, records: int, groups: int) -> tuple[float, float, float]:
    """Median milliseconds per record over the first and the last tenth, and the seconds to open it again."""
    names = [f"layer{number}.conv1" for number in range(groups)]
    protocol = f"benchmark-{time.time_ns()}"
    ledger = Ledger(where, protocol, names)
    took = []
    for number in range(records):
        widths = [1 + (7 * number + g) % 64 for g in range(groups - 2)]
        scheme = Scheme((*widths, 1 + number // 64, 1 + number % 64))
        found = Measurement(
            loss=0.1 * number,
            accuracy=0.5,
            kl=0.25,
            costs={"macs": 62e6, "params": 4e5},
            fractions={"macs": 0.5, "params": 0.47},
            seconds={"slice": 0.1, "recover": 0.4, "evaluate": 0.5, "total": 1.0},
        )
        began = time.perf_counter()
        assert ledger.append(scheme, found, -0.1 * number)
        took.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    again = Ledger(where, protocol, names)
    opening = time.perf_counter() - began
    assert len(again) == records
    tenth = max(1, records // 10)
    return statistics.median(took[:tenth]), statistics.median(took[-tenth:]), opening


if __name__ == "__main__":
    main()
