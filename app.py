"""Open the page: `python app.py [--base ...]`, the same as `coeff-diffusion studio`."""

import sys

from coeff_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main(["studio", *sys.argv[1:]]))
