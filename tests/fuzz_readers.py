"""Coverage-guided fuzzing of the readers of untrusted files: ``python tests/fuzz_readers.py READER --runs N``.

This needs Atheris (``pip install atheris``). A reader may read a file or refuse it by a documented error. Any other
error, more than two gigabytes of memory or ten seconds for a file is a bug. It ends the command and leaves the file.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

try:
    import atheris
except ImportError:
    sys.exit("fuzz_readers.py needs Atheris: pip install atheris")

with atheris.instrument_imports(include=["pnf.data", "pnf.flows.saving", "pnf.training", "zipfile", "json", "pickle"]):
    from untrusted import READERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--runs", type=int, default=1_000_000)
    args = parser.parse_args()
    logging.disable()
    reader = READERS[args.reader]
    # In memory if possible, since each run writes a file.
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir()
    work.mkdir()
    for i, seed in enumerate(reader.seeds):
        (corpus / str(i)).write_bytes(seed)
    counts = {"read": 0, "refused": 0}
    started = time.perf_counter()

    def run(content: bytes) -> None:
        counts["read" if reader.try_on(content, work) else "refused"] += 1
        total = counts["read"] + counts["refused"]
        if total == args.runs or total % 10_000 == 0:
            seconds = time.perf_counter() - started
            print(
                f"| {args.reader} | {total:,} | {counts['read']:,} | {counts['refused']:,} | {seconds:.0f} s |",
                flush=True,
            )

    options = [f"-runs={args.runs}", "-max_len=16384", "-rss_limit_mb=2048", "-timeout=10", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
