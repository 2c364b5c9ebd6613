"""Many people at one page: 50 drawings from 8 clients at once. None may be lost or crossed; memory stays flat.

python benchmarks/page_load.py
python benchmarks/page_load.py --requests 50 --clients 8 --steps 20
"""

import argparse
import statistics
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradio_client import Client
from timing import machine

from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.ui import PageConfig, open_page

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "white")


def resident() -> float:
    """MiB of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        address = open_page(PageConfig(subjects_dir=folder, output_dir=f"{folder}/pictures", port=0), block=False)
        opened = time.monotonic() - started
        clients = [Client(address, verbose=False, download_files=folder) for _ in range(args.clients)]
        answers: list[float] = []  # seconds that the page itself took to answer meanwhile
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.5):
                asked = time.monotonic()
                urllib.request.urlopen(address, timeout=60).read()
                answers.append(time.monotonic() - asked)

        def draw(number: int) -> tuple[str, int, float]:
            prompt = f"a cat on a {COLOURS[number % len(COLOURS)]} background, number {number}"
            asked = time.monotonic()
            files, _ = clients[number % args.clients].predict(
                prompt, None, {"seed": number, "steps": args.steps}, False, api_name="/draw"
            )
            found = read_parameters(files[0])
            assert (found.prompt, found.seed) == (prompt, number), f"crossed: asked {prompt!r}, got {found.prompt!r}"
            return found.prompt, number, time.monotonic() - asked

        draw(0)  # what the first drawing loads stays
        before, watcher = resident(), threading.Thread(target=look, daemon=True)
        watcher.start()
        started = time.monotonic()
        with ThreadPoolExecutor(args.clients) as pool:
            results = list(pool.map(draw, range(args.requests)))
        seconds, half = time.monotonic() - started, resident()
        with ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(draw, range(args.requests)))
        done.set()
        watcher.join()
        waits = [wait for _, _, wait in results]
        print(machine())
        print(f"page open after {opened:.1f} s (packages loaded before that)")
        print(f"{len(results)} drawings of {args.steps} steps from {args.clients} clients: none lost, none crossed")
        print(f"{seconds:.1f} s, {seconds / len(results):.2f} s each")
        print(f"waits: median {statistics.median(waits):.1f} s, longest {max(waits):.1f} s")
        print(f"the page meanwhile answered within {max(answers):.2f} s, median {statistics.median(answers):.3f} s")
        print(f"memory: {before:.0f} MiB before, {half:.0f} after one round, {resident():.0f} after two")


if __name__ == "__main__":
    main()
