"""What may be done to a network with a block in it: asked of every context block, after a stage and in its branches.

    python tests/insertion/matrix.py [--blocks criss_cross,nonlocal] [--questions fx,onnx] [--fresh] [--jobs 2]

Answers are kept in tests/insertion/matrix.json, so that a run that was stopped goes on where it was. Once all blocks
are asked, the table of docs/insertion.md is written from them (`make insertion-table`); exit code 1 where it changed.
Continuous integration asks all but the three that take nine tenths of the time (``--questions quick``); columns that
are not asked stay as they are. The suite asks four blocks.
"""

import argparse
import copy
import functools
import inspect
import json
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor, nn

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []

from samples import assert_same, randomise  # noqa: E402

import lookfar  # noqa: E402
from lookfar.blocks import list_blocks  # noqa: E402
from lookfar.insertion import insert, insertions, verify  # noqa: E402

ANSWERS = Path(__file__).with_name("matrix.json")
DOCUMENT = TESTS.parent / "docs" / "insertion.md"
BEGIN, END = "<!-- the table of blocks: made by `make insertion-table` -->", "<!-- end of the table -->"
POSITIONS = ("last", "branch")
SIZE, OTHERS = (40, 56), ((56, 40), (72, 72), (32, 96))
FAMILIES = {
    "resnet18": "layer3",
    "efficientnet_lite0": "blocks.4",
    "tf_efficientnetv2_b0": "blocks.4",
    "mobilenetv3_small_050": "blocks.3",
    "regnety_002": "s3",
    "convnext_atto": "stages.2",
}


class Host(nn.Module):
    """A small residual network; a stage of two blocks at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock

        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.BatchNorm2d(32), nn.ReLU())
        self.stage = nn.Sequential(BasicBlock(32, 32), BasicBlock(32, 32))
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x))).mean((2, 3))


@functools.cache
def _host() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Host()).eval()


def image(size: tuple[int, int] = SIZE, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


def inserted(block: str, position: str) -> nn.Module:
    """A network with the block awake in it, in evaluation."""
    net = copy.deepcopy(_host())
    torch.manual_seed(0)  # whichever others are asked before
    insert(net, block, "stage", position=position, example=image())
    for one in insertions(net):
        randomise(one.module)
    net.eval()
    with torch.no_grad():
        assert not torch.equal(net(image()), _host()(image())), "the block does nothing"
    return net


def same(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    assert_same("output", got, want, tolerance)


# the questions: each takes the network, fresh, and raises where the answer is no


@torch.no_grad()
def compiled(net: nn.Module) -> None:
    torch._dynamo.reset()
    same(torch.compile(net, fullgraph=True, backend="eager")(image()), net(image()))


def _free() -> dict[str, dict[int, object]]:
    return {"x": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}


@torch.no_grad()
def exported(net: nn.Module) -> None:
    export = torch.export.export(net, (image(),), dynamic_shapes=_free(), strict=False)
    guards = "check_guards" in inspect.signature(export.module).parameters  # not on torch 2.8
    program = export.module(check_guards=False) if guards else export.module()
    for size in (SIZE, *OTHERS):
        same(program(image(size)), net(image(size)))


@torch.no_grad()
def onnx(net: nn.Module) -> None:
    import onnxruntime

    program = torch.onnx.export(net, (image(),), dynamo=True, dynamic_shapes=_free(), verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in (SIZE, *OTHERS):
        (got,) = session.run(None, {session.get_inputs()[0].name: image(size).numpy()})
        same(torch.from_numpy(got), net(image(size)))


@torch.no_grad()
def fx(net: nn.Module) -> None:
    from torch.fx.experimental.optimization import fuse

    graph = torch.fx.symbolic_trace(net)
    same(graph(image()), net(image()))
    missing = dict(net.named_parameters()).keys() - dict(graph.named_parameters()).keys()
    assert not missing, f"the graph lacks {sorted(missing)[:3]}"
    same(fuse(net)(image()), net(image()))


@torch.no_grad()
def copied(net: nn.Module) -> None:
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        same(other(image()), net(image()), 0)


@torch.no_grad()
def synchronised(net: nn.Module) -> None:
    want = net(image())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()
    same(converted(image()), want)
    assert verify(converted, image()) == {}


@torch.no_grad()
def frozen(net: nn.Module) -> None:
    from timm.layers import freeze_batch_norm_2d

    want = net(image())
    converted = freeze_batch_norm_2d(net)
    same(converted(image()), want)
    assert verify(converted, image()) == {}


def sharded(net: nn.Module) -> None:
    """FSDP2 in a group of one process: each residual block, then the rest."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        other = copy.deepcopy(net)
        mesh = init_device_mesh("cpu", (1,))
        for block in other.stage:
            fully_shard(block, mesh=mesh)
        fully_shard(other, mesh=mesh)
        _compare_training(other, net, lambda g: g.full_tensor())
    finally:
        dist.destroy_process_group()


def _compare_training(other: nn.Module, net: nn.Module, whole: Callable[[Tensor], Tensor]) -> None:
    for one in (net, other):
        torch.manual_seed(0)
        one.train()(image()).square().mean().backward()
    for (name, p), q in zip(net.named_parameters(), other.parameters()):
        if p.grad is not None:
            assert q.grad is not None, f"no gradient reaches {name}"
            assert_same(name, whole(q.grad), p.grad, 1e-3)


def in_two_processes(block: str, position: str) -> None:
    """DDP: the gradient of two halves of a batch is the batch's."""
    (told,) = train_together([(block, position)])
    assert told == "yes", told


def train_together(pairs: list[tuple[str, str]]) -> list[str]:
    """Answers for several blocks from one pair of processes."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{rank}.json") for rank in range(2)]
        try:
            torch.multiprocessing.start_processes(_ddp, (pairs, folder), nprocs=2, start_method="spawn")
        except torch.multiprocessing.ProcessExitedException:
            if not all(file.is_file() for file in files):
                raise  # else gloo's threads aborted a process that had answered and was at its end
        told = [json.loads(file.read_text()) for file in files]
    return [next((text for text in both if text != "yes"), "yes") for both in zip(*told)]


def _ddp(rank: int, pairs: list[tuple[str, str]], folder: str) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    told = []
    for block, position in pairs:
        try:
            _ddp_step(inserted(block, position), rank)
            told.append("yes")
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}".splitlines()[0][:240])
    Path(folder, f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()  # both have answered before either leaves
    dist.destroy_process_group()


def _ddp_step(net: nn.Module, rank: int) -> None:
    alone = copy.deepcopy(net)
    alone(image()).square().mean().backward()
    wrapped = nn.parallel.DistributedDataParallel(net)
    for _ in range(2):  # a second step would find parameters that the first one did not reach
        wrapped.zero_grad()
        wrapped(image()[rank : rank + 1]).square().mean().backward()
    for (name, p), q in zip(alone.named_parameters(), net.parameters()):
        if p.grad is not None:
            assert q.grad is not None, f"no gradient reaches {name}"
            assert_same(name, q.grad, p.grad, 1e-3)


@torch.no_grad()
def loaded(net: nn.Module) -> None:
    """In a new process."""
    (told,) = load_elsewhere([net])
    assert told == "yes", told


@torch.no_grad()
def load_elsewhere(nets: list[nn.Module]) -> list[str]:
    """Answers for several networks from one new process."""
    with tempfile.TemporaryDirectory() as folder:
        for number, net in enumerate(nets):
            lookfar.save(net, Path(folder, f"{number}.safetensors"))
            torch.save(net(image()), Path(folder, f"{number}.pt"))
        script = f"""
            import json, sys; sys.path[:0] = [{str(TESTS)!r}]
            import torch, lookfar
            torch.set_num_threads(1)
            from insertion.matrix import Host, image
            told = []
            for number in range({len(nets)}):
                try:
                    net = lookfar.load(Host(), f"{folder}/{{number}}.safetensors").eval()
                    want = torch.load(f"{folder}/{{number}}.pt", weights_only=True)
                    torch.testing.assert_close(net(image()), want, rtol=1e-5, atol=1e-5)
                    told.append("yes")
                except Exception as error:
                    told.append(f"{{type(error).__name__}}: {{error}}")
            print(json.dumps(told))
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
        return json.loads(done.stdout)


@functools.cache
def _family(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=5))


def checkpointed(block: str, position: str) -> None:
    """timm's activation checkpointing, which runs the children of a stage: in six families."""
    x = image((64, 64))
    for name, stage in FAMILIES.items():
        if position == "branch" and name == "convnext_atto":
            continue  # its branch ends in a parameter
        net = copy.deepcopy(_family(name))
        insert(net, block, stage, position=position, example=x)
        for one in insertions(net):
            randomise(one.module)
        plain, saving = copy.deepcopy(net), net
        saving.set_grad_checkpointing(True)
        outputs = []
        for one in (plain, saving):  # each with the buffers that it starts with
            torch.manual_seed(5)
            outputs.append(one.train()(x))
            outputs[-1].square().mean().backward()
        same(outputs[1], outputs[0], 1e-5)
        assert verify(saving, x) == {}, name
        pairs = list(zip(insertions(saving)[0].module.named_parameters(), insertions(plain)[0].module.parameters()))
        assert any(p.grad is not None and p.grad.any() for (_, p), _ in pairs), f"{name}: no gradient reaches the block"
        for (parameter, p), q in pairs:
            if q.grad is not None:
                assert p.grad is not None, f"{name}: no gradient reaches {parameter}"
                assert_same(f"{name}: gradient of {parameter}", p.grad, q.grad, 1e-3)


QUESTIONS: dict[str, tuple[str, Callable[..., None]]] = {
    "copied": ("deepcopy, pickle", copied),
    "compiled": ("compile", compiled),
    "exported": ("export", exported),
    "onnx": ("ONNX", onnx),
    "fx": ("fx", fx),
    "checkpointed": ("checkpointing", checkpointed),
    "synchronised": ("SyncBN", synchronised),
    "frozen": ("frozen BN", frozen),
    "sharded": ("FSDP2", sharded),
    "in_two_processes": ("DDP", in_two_processes),
    "loaded": ("save, load", loaded),
}


SLOW = ("exported", "onnx", "checkpointed")

# questions that want other processes: asked of all blocks at once
TOGETHER: dict[str, Callable[[list[tuple[str, str]]], list[str]]] = {
    "in_two_processes": train_together,
    "loaded": lambda pairs: load_elsewhere([inserted(*pair) for pair in pairs]),
}


def ask(question: str, block: str, position: str) -> None:
    """Raise where the answer is no."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters and of autograd on one thread
        torch.manual_seed(0)
        function = QUESTIONS[question][1]
        if function in (checkpointed, in_two_processes):
            function(block, position)
        else:
            function(inserted(block, position))


def answer(question: str, block: str, position: str) -> tuple[str, float]:
    """The answer and the seconds that it took."""
    start = time.perf_counter()
    try:
        ask(question, block, position)
    except Exception as error:
        traceback.print_exc(limit=-3)
        return f"{type(error).__name__}: {error}".splitlines()[0][:240], time.perf_counter() - start
    return "yes", time.perf_counter() - start


Asked = tuple[str, str, str]  # question, block, position


def answers_to(asked: list[Asked], jobs: int) -> Iterator[tuple[Asked, str, float]]:
    """Answers as they come, from processes of one thread each: what one block leaves behind reaches few others."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    spawn = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (threads,)) as pool:
        running = {pool.submit(answer, *one): one for one in asked}
        for done in as_completed(running):
            yield running[done], *done.result()


def table(answers: dict[str, dict[str, str]], known: str = "") -> str:
    """A row a block; a cell is a yes where both positions say yes, that of a ``known`` table where none was asked."""
    before = cells_of(known)
    from lookfar._tables import markdown_table

    blocks = sorted({key.partition("@")[0] for key in answers})
    rows, notes = [], []
    for block in blocks:
        cells = []
        for question in QUESTIONS:
            given = {position: answers.get(f"{block}@{position}", {}).get(question) for position in POSITIONS}
            wrong = {position: text for position, text in given.items() if text not in ("yes", None)}
            for text in dict.fromkeys(wrong.values()):
                where = " and ".join(position for position, one in wrong.items() if one == text)
                notes.append(f"- `{block}` at `{where}`, {QUESTIONS[question][0]}: {text}")
            if all(text is None for text in given.values()):
                cells.append(before.get((f"`{block}`", title := QUESTIONS[question][0]), ""))
                lines = (line for line in known.splitlines() if line.startswith(f"- `{block}` at "))
                notes += [line for line in lines if f"`, {title}: " in line]
            else:
                cells.append("no" if len(wrong) == 2 else f"not at {next(iter(wrong))}" if wrong else "yes")
        rows.append([f"`{block}`", *cells])
    text = markdown_table(["block", *(title for title, _ in QUESTIONS.values())], rows)
    return text + ("\n\n" + "\n".join(notes) if notes else "")


def cells_of(text: str) -> dict[tuple[str, str], str]:
    """What a table of Markdown says, by the first cell of the row and the head of the column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {(row[0], head): cell for row in rows[2:] for head, cell in zip(rows[0], row)}


def write(answers: dict[str, dict[str, str]]) -> bool:
    """Whether the document's table is another now."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, found, after = text.split(BEGIN)[0], text.split(BEGIN)[1].split(END)[0], text.split(END)[1]
    written = f"{before}{BEGIN}\n\n{table(answers, found)}\n\n{END}{after}"
    DOCUMENT.write_text(written, encoding="utf-8")
    return written != text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", help="names with commas; all context blocks by default")
    parser.add_argument("--questions", help=f"of {', '.join(QUESTIONS)}; or quick; all by default")
    parser.add_argument("--fresh", action="store_true", help="ask again what has been answered")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    args = parser.parse_args()
    answers: dict[str, dict[str, str]] = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    blocks = args.blocks.split(",") if args.blocks else list_blocks(kind="context")
    quick = [question for question in QUESTIONS if question not in SLOW]
    questions = quick if args.questions == "quick" else args.questions.split(",") if args.questions else [*QUESTIONS]
    asked = [
        (question, block, position)
        for question in questions
        for block in blocks
        for position in POSITIONS
        if args.fresh or answers.get(f"{block}@{position}", {}).get(question) != "yes"
    ]

    def keep(question: str, block: str, position: str, told: str, seconds: str = "") -> None:
        answers.setdefault(f"{block}@{position}", {})[question] = told
        print(f"{question:16} {block:28} {position:7} {seconds:8} {told}", flush=True)
        ANSWERS.write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")

    for one, told, seconds in answers_to([one for one in asked if one[0] not in TOGETHER], args.jobs):
        keep(*one, told, f"{seconds:5.1f} s")
    for question in (question for question in questions if question in TOGETHER):
        pairs = [(block, position) for asked_of, block, position in asked if asked_of == question]
        for pair, told in zip(pairs, TOGETHER[question](pairs) if pairs else []):
            keep(question, *pair, told)
    if args.blocks:
        print(table({key: given for key, given in answers.items() if key.partition("@")[0] in blocks}))
    elif write(answers):
        sys.exit(f"the table in {DOCUMENT.relative_to(TESTS.parent)} is another now: git diff shows where")


if __name__ == "__main__":
    main()
