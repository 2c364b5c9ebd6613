"""Which guidance draws subjects best, and whether a subject should act in guidance's unconditional branch too.

    python benchmarks/fidelity.py --method all && python benchmarks/guidance.py

Draws the 20 pictures of each subject with the files that the first command has trained (seed 0), at several scales, in
both ways; takes the same settings.
"""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from fidelity_measure import COLOURS, Measurement, grounds, nearest_colour
from fidelity_methods import Trained, loaded
from fidelity_plan import Run, read_results, search
from fidelity_settings import BenchmarkError, Settings

from coeff_diffusion import set_coefficients
from coeff_diffusion.cli import guarded, parse
from coeff_diffusion.families.load import load_base

METHOD = "all"  # what `train` does
SCALES = (3.0, 7.5, 4.0, 2.0)  # the default first


def main() -> int:
    settings = parse("guidance", Settings, sys.argv[1:]).resolve()
    rates = search(settings, METHOD, read_results(Path(settings.output_dir) / "results.jsonl"))[1]
    if rates is None:
        raise BenchmarkError(f"no learning rates of {METHOD} in {settings.output_dir}; run fidelity.py first")
    pipe = load_base(settings.base)
    print("| guidance | subject acts in | similarity | background right |\n| --- | --- | --- | --- |", flush=True)
    for scale in SCALES:
        for rows, where in (("both", "both branches"), ("cond", "the prompt's branch")):
            found = []
            for subject in settings.subject:
                run = Run.make(settings, METHOD, subject, rates=rates)
                file = Path(settings.output_dir) / "files" / f"{run.stem}.safetensors"
                with loaded(pipe, run, Trained(file, {})) as name:
                    assert name is not None
                    set_coefficients(pipe, {}, guidance_rows=rows)  # type: ignore[arg-type]
                    measured = Measurement(replace(run, guidance_scale=scale), settings, pipe, name)
                    words = measured.subject.words(METHOD)
                    pictures = measured.draw([f"{words} {ground}" for ground in grounds()], 0)
                    right = [nearest_colour(p) == c for p, c in zip(pictures, COLOURS, strict=False)]
                    found.append((measured.likeness(pictures)["similarity"], statistics.fmean(right)))
            similarity, right_share = (statistics.fmean(values) for values in zip(*found, strict=True))
            print(f"| {scale:g} | {where} | {similarity:.3f} | {right_share:.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
