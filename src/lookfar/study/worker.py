"""One trial, a process of its own: ``python -m lookfar.study.worker FOLDER``.

It holds the folder's lock, and does nothing where another process has just written the result. Else it reads
``config.json``, reports its progress on standard output as one JSON object a line, and ends with ``result.json``.
Standard input is a pipe that the study holds open: where it ends, the study is dead and so is the trial, at once,
since the next run of the study may already be waiting for the folder. With ``$LOOKFAR_PATIENCE`` it gives up, with exit
status 75, where somebody else works in the folder for longer than so many seconds.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar._tables import shorten
from lookfar.study._files import read_if_whole, read_json, sweep, write_json
from lookfar.study._locks import PREPARES, Owner, Taken, locked
from lookfar.study.processes import TAKEN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookfar.data import Data
    from lookfar.study.plan import Plan
    from lookfar.tasks import Task

Report = Callable[..., None]

SAMPLES = 12  # validation images that the report shows
REASON = 300  # characters of a failure that a table shows
STOPPED = 130  # exit status of a trial that was asked to stop


def run_trial(folder: Path, report: Report = lambda **_: None) -> dict[str, Any] | None:
    """Build, train and measure what ``config.json`` describes; the values of ``result.json``.

    None in the helping processes of a trial on several devices.
    """
    import torch

    from lookfar.data.fingerprint import fingerprint
    from lookfar.study.build import build_host, open_plan_data, put_in, weights_digest
    from lookfar.study.candidates import Candidate
    from lookfar.study.continuing import check_unchanged, decisive
    from lookfar.study.plan import Plan
    from lookfar.training import is_main_process, train

    config = read_json(folder / "config.json")
    plan, candidate, seed = Plan.from_dict(config["plan"]), Candidate.parse(config["candidate"]), config["seed"]
    torch.set_num_threads(plan.threads)

    study = folder.parents[2]
    data, task = open_plan_data(plan), plan.find_task(study)
    network = build_host(plan, data, seed, study=study)
    check_unchanged(config, study, fingerprint(data), weights_digest(plan, network))
    controls = config["control_parameters"]
    names = put_in(network, plan, candidate, data, seed, control_parameters=controls, study=study)

    def progress(step: int, steps: int, values: dict[str, Any]) -> None:
        report(step=step, steps=steps, **{k: values[k] for k in ("loss", task.metric, "seconds") if k in values})

    trained = train(network, data, task, plan.settings(), folder, seed=seed, blocks=names, progress=progress)
    if not is_main_process():
        return None

    report(doing="measuring")
    network.to(
        plan.accelerator
    )  # where training was over already, the network has not been moved there in this process
    return measure_trial(network, names, data, task, plan, folder, trained, decisive(config))


def measure_trial(
    network: "nn.Module",
    names: Sequence[str],
    data: "Data",
    task: "Task",
    plan: "Plan",
    folder: Path,
    trained: Mapping[str, Any],
    trained_with: str,
) -> dict[str, Any]:
    """What a trial's network is asked once it is there; the values of ``result.json``.

    Args:
        network: With its final weights, where it runs; in the end in single precision.
        names: Of its inserted blocks.
        data: Of the plan.
        task: Of the plan.
        plan: Resolved.
        folder: Of the trial, with the final weights and what was judged.
        trained: Scores on the validation samples, ``step``, ``seconds``, ``notes``.
        trained_with: Digest of ``config.json``.
    """
    from lookfar.cost import measure_network
    from lookfar.diagnostics import choose_images, collect_samples
    from lookfar.study.ablations import ablate, replaces
    from lookfar.study.mending import ALSO, digests
    from lookfar.training import evaluate
    from lookfar.training.checkpoints import save_arrays

    result: dict[str, Any] = {**trained, "notes": list(trained.get("notes", ()))}
    if data.also_val is not None:
        settings = plan.settings()
        options = {"batch_size": settings.batch_size, "precision": settings.precision, "score": settings.score}
        save_arrays(folder / ALSO, **evaluate(network, data, task, samples=data.also_val, **options))
    if names:
        ablate(network, names, data, task, plan, folder)
    network.float()  # pictures and costs are those of single precision
    indices = choose_images(len(data.val), SAMPLES)
    collect_samples(network, names[0] if names else None, data, task, indices, folder / "samples.npz")
    example = data.example()
    cost = measure_network(network, example, repeats=1)  # no time: other trials run beside this one
    result |= {
        "parameters": cost.parameters,
        "flops": cost.flops,
        "memory_mb": cost.memory_mb,
        "block_memory_mb": block_memory(network, names, example) if names else None,
        "device": cost.device,
        "blocks": names,
        "replaces": replaces(network, names),
        "files": digests(folder, task),
        "trained_with": trained_with,
    }
    return result


def block_memory(network: "nn.Module", names: Sequence[str], example: "Tensor") -> float:
    """MB at the peak of an inserted block alone, of its input where it stands; the largest of several."""
    import torch

    from lookfar.cost import peak_memory
    from lookfar.diagnostics.replacing import watched

    device = next(network.parameters()).device
    peaks = [0]
    with torch.no_grad():
        with watched(network.eval(), names) as seen:
            network(example.to(device))
        for name, inputs in seen.inputs.items():
            block = network.get_submodule(name)
            peaks += [peak_memory(partial(block, x), device) for x in inputs]
    return max(peaks) / 1e6


def main(folder: Path) -> int:
    """Run the trial in ``folder`` and write its result; the exit status."""
    report = _reporting_on_stdout()
    end_with_parent()
    if not is_first():
        return _run(folder, report)
    try:
        with locked(folder / ".lock", wait=_wait, lost=lambda: os._exit(TAKEN)):
            if read_if_whole(folder / "result.json"):  # it was taken away before this was started
                return 0
            sweep(folder)
            return _run(folder, report)
    except Taken:
        return TAKEN


def is_first() -> bool:
    """Whether this is the trial's only process or the first of several; torch is not loaded for it."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def _wait(owner: Owner, seconds: float) -> bool:
    return owner.doing == PREPARES or seconds < float(os.environ.get("LOOKFAR_PATIENCE", "inf"))


def _run(folder: Path, report: Report) -> int:
    from lookfar.study.continuing import Changed  # torch is loaded here, after the pipes are safe

    import_fabric()
    try:
        result = run_trial(folder, report)
        if result is not None:
            write_json(folder / "result.json", {"status": "done", "reason": "", **result})
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        # nothing is wrong with what was trained so far: it goes on once there is room, or the data are back
        kept = {"killed": True} if isinstance(error, (OSError, Changed)) else {}
        with contextlib.suppress(OSError):  # where nothing can be written, the study says so
            traceback.print_exc()
            if is_first():
                write_json(folder / "result.json", {"status": "failed", "reason": why(error), **kept})
        return 1
    return 0


def import_fabric() -> None:
    """Import Fabric, which would import torchmetrics, where that is installed, only to learn its version.

    That takes two seconds of every trial, and none needs it; a file of the user's may still import it.
    """
    if "torchmetrics" not in sys.modules:
        sys.modules["torchmetrics"] = None  # type: ignore[assignment]
        try:
            import lightning_fabric  # noqa: F401
        finally:
            del sys.modules["torchmetrics"]


def why(error: BaseException) -> str:
    """One line for a table: what went wrong, as the user would say it."""
    line = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in line:
        return f"out of memory: {shorten(line, REASON)}"
    if isinstance(error, OSError) and error.strerror:
        return shorten(error.strerror + (f": {error.filename}" if error.filename else ""), REASON)
    if type(error).__name__ in ("TrainingError", "Changed"):
        return shorten(line, REASON)
    return f"{type(error).__name__}: {shorten(line, REASON)}" if line else type(error).__name__


def _reporting_on_stdout() -> Report:
    """Keep standard output for progress; whatever a library prints goes to the log with the errors."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(**values: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            print(json.dumps(values), file=channel, flush=True)

    return report


def end_with_parent() -> None:
    """Leave as soon as the study's end of standard input is closed, however it died."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
