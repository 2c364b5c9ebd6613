"""Teach a Stable Diffusion a new subject from a few pictures, with the flags of diffusers' `train_dreambooth.py`.

    python train_dreambooth_coeff.py --instance_data_dir photos/dog --class_word dog
    python train_dreambooth_coeff.py --config configs/sd15.yaml --instance_data_dir photos/dog --class_word dog

`--help` lists every setting. Several GPUs: `accelerate launch train_dreambooth_coeff.py ...`.
"""

import sys

from coeff_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
