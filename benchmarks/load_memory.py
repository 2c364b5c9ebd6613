"""How much main memory loading a base takes at most, and how much it holds then.

    python benchmarks/load_memory.py sd_xl_base_1.0.safetensors --dtype bfloat16 --quantization int8
    python benchmarks/load_memory.py base/ --dtype float16         # a folder; also a Hub id

Counted is memory of the process's own. Pages of files that are being read come on top where there is room, and the
system drops them where there is none. Linux only.
"""

import argparse
import threading
import time
from pathlib import Path

from coeff_diffusion.families.load import load_base

STATUS = Path("/proc/self/status")
GAP = 0.05  # seconds between two looks


def own_memory() -> int:
    """MiB of main memory that no file stands behind."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) >> 10


class Highest(threading.Thread):
    """Watches the memory until it is stopped.

    Attributes:
        found: MiB, the most so far.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found, self._stopped = 0, threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(GAP):
            self.found = max(self.found, own_memory())

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder, a single file or a Hub id")
    parser.add_argument("--base_config", help="of a single file: the folder or Hub id that its configs are read from")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", choices=["no", "int8"], default="no")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if not STATUS.exists():
        parser.error("this system does not tell how much memory a process has")
    before, started, highest = own_memory(), time.perf_counter(), Highest()
    highest.start()
    pipe = load_base(
        args.base, config=args.base_config, dtype=args.dtype, quantization=args.quantization, device=args.device
    )
    highest.stop()
    seconds = time.perf_counter() - started
    most, now = max(highest.found, own_memory()) - before, own_memory() - before
    kind = f"{pipe.unet.dtype}, quantization {args.quantization}"
    print(f"{args.base} ({kind}): at most {most:,} MiB while it was loaded, {now:,} MiB then; {seconds:.0f} s")


if __name__ == "__main__":
    main()
