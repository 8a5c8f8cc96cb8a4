"""The end of a study on the terminal: the table, what it means in sentences, what to do next."""

import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lookfar.study.candidates import Candidate
from lookfar.study.judging import NOTHING
from lookfar.study.progress import make_console
from lookfar.study.results import Results
from lookfar.study.text import beside_lines, sentences, table_lines, told_lines


def show(results: Results, report: Path | None = None, console: Console | None = None) -> None:
    """Print the table, its sentences, where the report is, and what to do next."""
    console = console or make_console()
    for number, line in enumerate(table_lines(results.summaries, console.width, results.task.words)):
        console.print(line, style="bold" if number == 0 else "", soft_wrap=True)
    for line in beside_lines(results.summaries, results.task.columns):
        console.print(line, soft_wrap=True)
    console.print()
    for sentence in sentences(results.summaries, results.conclusions):
        console.print(sentence, soft_wrap=not console.is_terminal)  # a terminal wraps at words
    for line in told_lines(results.summaries):
        console.print(line, soft_wrap=not console.is_terminal)
    if results.latency.of:
        console.print(str(results.latency), soft_wrap=not console.is_terminal)
    for line in ["", *results.also_lines(console.width)] if results.also else []:
        console.print(line, soft_wrap=not console.is_terminal)
    last = ([f"Report: {report}"] if report else []) + [f"Next: {next_step(results)}"]
    joined = "        ".join(last)
    console.print(joined if len(joined) <= console.width else "\n".join(last), soft_wrap=True)


def next_step(results: Results) -> str:
    """What the reader of this table would do next."""
    plan, study = results.plan, f"lookfar study {shlex.quote(str(results.folder))}"
    if not results.complete:
        return f"{study} runs what failed or is missing"
    if any(sentence.startswith(NOTHING) for sentence in results.conclusions.sentences):
        return f"train longer, in a folder of its own: --steps {4 * (plan.resolved().steps or 0)} --out DIR"
    if plan.data == "scenes:lookup":
        return "the same with --data scenes:cue, or on your own images: --data PATH"
    if plan.data == "scenes:cue":
        return "your own images: lookfar study --data PATH --blocks nonlocal,global_context --pretrained"
    best = results.summaries[0]
    if best.verdict == "better":
        candidate = Candidate.parse(best.candidate)
        replaces = any(trial.replaces for trial in results.trials if trial.candidate == best.candidate)
        how = "replace" if replaces else "insert"
        return f'put it in: lookfar.{how}(network, "{replace(candidate, place=None)}", at=...)'
    # what is finished stays, and only what is new is trained
    return f"more seeds narrow the intervals: {study} --seeds {max(2 * plan.seeds, 3)}"
