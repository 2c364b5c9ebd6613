"""How well the ways to teach a subject do: coefficients, token, both, LoRA, all attention weights, and nothing at all.

    python benchmarks/fidelity.py --quick             a look: one subject, one seed, few steps
    python benchmarks/fidelity.py --jobs 2            everything; stop it at any time, it goes on where it was
    python benchmarks/fidelity.py report              the table of what is there, docs/fidelity-table.md and the grid
    python benchmarks/fidelity.py --help              all settings; `report` takes the same

Every method trains with the same pictures, steps, batches and noise, at learning rates of its own that a search on the
loss of unseen pictures finds first: of those within 2 % of the best gain the lowest, which drifts least. Each training
runs in a process of its own, so that its memory is its own. Results are lines of `results.jsonl` in the output folder,
written as soon as they are there.

Heavy imports wait until they are needed, so that `--help` answers at once.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fidelity_plan import Results, Run, append_result, loss_of, plan, read_results
from fidelity_settings import NOTHING, BenchmarkError, Settings
from tqdm import tqdm

from coeff_diffusion.cli import guarded, parse

Worker = Callable[[Run, Settings], dict[str, Any]]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["one"]:  # what `in_own_process` starts
        run = Run.from_record(json.loads(arguments[1]))
        print(json.dumps(execute(run, Settings(**json.loads(arguments[2])))))
        return 0
    command = arguments[0] if arguments[:1] in (["run"], ["report"]) else "run"
    flags = arguments[1:] if arguments[:1] == [command] else arguments
    settings = parse("fidelity", Settings, flags).resolve()
    from fidelity_report import write_report

    if command == "run":
        run_all(settings)
    print(write_report(settings))
    return 0


# --- one run ----------------------------------------------------------------------------------------------------------


def execute(run: Run, settings: Settings) -> dict[str, Any]:
    """Train one subject in one way and measure it. A training that breaks up is a result too."""
    import torch
    from fidelity_measure import Measurement
    from fidelity_methods import loaded, train

    from coeff_diffusion.families.load import best_device, load_base
    from coeff_diffusion.inference.request import StudioError
    from coeff_diffusion.subject.errors import CoefficientsError
    from coeff_diffusion.training.reports import TrainingError

    started = time.monotonic()
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "jobs": settings.jobs,
        "torch": torch.__version__,
    }
    pipe = load_base(run.base).to("cpu" if settings.device == "cpu" else best_device())
    try:
        trained = None if run.method == NOTHING else train(run, settings, pipe)
        with loaded(pipe, run, trained) as name:
            figures = Measurement(run, settings, pipe, name).figures()
        if not math.isfinite(figures["subject_loss"]):
            raise TrainingError(f"the loss on unseen pictures became {figures['subject_loss']}")
    except (TrainingError, CoefficientsError, StudioError) as error:
        return {"broke_up": str(error), "machine": machine, "wall_seconds": time.monotonic() - started}
    costs = {} if trained is None else trained.figures
    return {**costs, **figures, "machine": machine, "wall_seconds": time.monotonic() - started}


def in_own_process(run: Run, settings: Settings) -> dict[str, Any]:
    """`execute` in a fresh process with its own share of the cores."""
    log = Path(settings.output_dir) / "logs" / f"{run.stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if settings.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, __file__, "one", json.dumps(asdict(run)), json.dumps(asdict(settings))]
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(f"{run.stem} failed with exit code {done.returncode}: {last[0]} (all of it in {log})")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- all runs ---------------------------------------------------------------------------------------------------------


def run_all(settings: Settings, worker: Worker = in_own_process) -> Results:
    """Run what is missing, `settings.jobs` at a time. What comes next is planned anew after every result.

    Raises:
        BenchmarkError: a run failed; the others that were running are finished and kept.
    """
    from coeff_diffusion.training.reports import clock_time

    path = Path(settings.output_dir) / "results.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    results, writing = read_results(path), threading.Lock()

    def work(run: Run) -> tuple[Run, dict[str, Any]]:
        figures = worker(run, settings)
        with writing:
            append_result(path, run, figures)
        return run, figures

    running: dict[Future[tuple[Run, dict[str, Any]]], Run] = {}
    shape = "{desc}: {n_fmt} of {total_fmt} runs [{elapsed}{postfix}]"  # tqdm's own estimate takes all runs for equal
    with tqdm(desc="fidelity", bar_format=shape) as bar, ThreadPoolExecutor(settings.jobs) as pool:
        try:
            while True:
                now, later = plan(settings, results)
                for run in now:
                    if run not in running.values() and len(running) < settings.jobs:
                        running[pool.submit(work, run)] = run
                if not running:
                    return results
                bar.total = bar.n + len(now) + len(later)
                left = seconds_left(now + later, results, settings.jobs)
                bar.set_postfix_str("time left not known yet" if left is None else f"about {clock_time(left)} left")
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    run, figures = future.result()
                    results[run] = figures
                    bar.write(said(run, figures))
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def seconds_left(runs: list[Run], results: Results, jobs: int) -> float | None:
    """An estimate from how long runs of the same kind took: with or without training, with or without pictures."""
    took: dict[tuple[bool, bool], list[float]] = {}
    for run, figures in results.items():
        if runs and run.base_digest == runs[0].base_digest and run.steps == runs[0].steps:
            took.setdefault((run.drawn, run.method != NOTHING), []).append(figures["wall_seconds"])
    means = {kind: sum(each) / len(each) for kind, each in took.items()}
    if not means:
        return None
    return sum(means.get((run.drawn, run.method != NOTHING), max(means.values())) for run in runs) / jobs


def said(run: Run, figures: dict[str, Any]) -> str:
    """One line about a result."""
    rates = " + ".join(f"{rate:.0e}" for rate in run.rates)
    what = f"{run.method} {run.subject} seed {run.seed}" + (f" at {rates}" if rates else "")
    if "broke_up" in figures:
        return f"{what}: broke up ({figures['broke_up']})"
    measured = f", similarity {figures['similarity']:.3f}" if run.drawn else ""
    return f"{what}: subject loss {loss_of(figures):.4f}{measured}, {figures['wall_seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), debug="one" in sys.argv[1:2]))
