"""The long demo: fine-tuning to write a docstring's first line from its body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from janus_pt.commands.demo_losses import loss_table
from janus_pt.commands.demo_steps import build_corpus, build_text, call, pretrain, train
from janus_pt.tasks.outputs import pair_up
from janus_pt.tasks.overlap import rouge
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import read_lines

MAX_PAIR_TOKENS = 254
"""Tokens of each side of a pair: 256 positions with bos and eos."""
SAMPLES = 6
"""Outputs shown beside their reference."""


@dataclass(frozen=True)
class Decoding:
    """A row of the table: its name, and the flags of `janus-pt generate`."""

    name: str
    flags: tuple[str, ...]


DECODINGS = {
    "ar": Decoding("AR, beam 4", ("--mode", "ar", "--num-beams", "4")),
    "nar": Decoding(
        "NAR, 10 passes, 7 lengths",
        ("--mode", "nar", "--iterations", "10", "--length-beam", "7"),
    ),
    "nar_fast": Decoding(
        "NAR, 4 passes, 1 length", ("--mode", "nar", "--iterations", "4", "--length-beam", "1")
    ),
}
"""Ending of the output's file -> how it is decoded."""


def run_long(folder: Path, runs: Path) -> None:
    """Pretrain, fine-tune, decode, and print the tables."""
    pretrained = runs / "demo_pretrain_long"
    finetuned = runs / "demo_finetune"
    tokenizer = build_text(folder)
    text = folder / "text"
    for split in ("train", "valid"):
        source, target = (str(text / f"pairs.{split}.{side}") for side in ("source", "target"))
        inputs = ["--source", source, "--target", target]
        build_corpus(folder / f"pairs_{split}", tokenizer, inputs, MAX_PAIR_TOKENS)
    pretrain(folder, pretrained, [])
    finetuning = [
        f"run.output_dir={finetuned}",
        f"run.init_from={pretrained}/export",
        f"data.train.0.path={folder}/pairs_train",
        f"data.valid={folder}/pairs_valid",
    ]
    train("finetune", "summary_tiny", finetuning)
    decode(folder, finetuned / "export")
    print_tables(folder, pretrained, finetuned)


def decode(folder: Path, model: Path) -> None:
    """Decode the test set in every way of the table."""
    for name, decoding in DECODINGS.items():
        command = ["generate", "--model", str(model), *decoding.flags]
        command += ["--input", str(folder / "text" / "pairs.test.source")]
        command += ["--output", str(folder / f"test.{name}")]
        command += ["--json", str(folder / f"test.{name}.json")]
        call(*command)


def print_tables(folder: Path, pretrained: Path, finetuned: Path) -> None:
    """Print losses, quality and speed, and samples.

    Args:
        folder: corpus and outputs.
        pretrained, finetuned: the run folders.
    """
    print("\n" + loss_table({"pretraining": pretrained, "fine-tuning": finetuned}))
    sources = read_lines(folder / "text/pairs.test.source")
    references = read_lines(folder / "text/pairs.test.target")
    outputs = {name: read_lines(folder / f"test.{name}") for name in DECODINGS}
    rows = [["copy the first words", rouge_l(copy_baseline(sources, references), references), ""]]
    for name, decoding in DECODINGS.items():
        speed = json.loads((folder / f"test.{name}.json").read_text())["sentences_per_s"]
        rows.append([decoding.name, rouge_l(outputs[name], references), f"{speed:.1f}"])
    headers = (f"test set, {len(references)} pairs", "ROUGE-L", "sentences/s")
    print("\n" + format_table(rows, headers, align="lr") + "\n")
    print_samples(references, outputs)
    print(f"curves: {pretrained}/loss.png, {finetuned}/loss.png\nmodel: {finetuned}/export")


def copy_baseline(sources: list[str], references: list[str]) -> list[str]:
    """As many first words of each source as references have on average."""
    words = round(sum(len(reference.split()) for reference in references) / len(references))
    return [" ".join(source.split()[:words]) for source in sources]


def rouge_l(predictions: list[str], references: list[str]) -> str:
    """ROUGE-L F1 as text, 0 to 100."""
    scores = rouge(pair_up(predictions, [references]))
    return f"{scores.values['rougeL']:.2f}"


def print_samples(references: list[str], outputs: dict[str, list[str]]) -> None:
    """Print some references, spread over the test set, with their outputs."""
    step = max(1, len(references) // SAMPLES)
    for index in range(0, len(references), step):
        rows = [
            ["reference", references[index]],
            ["AR", outputs["ar"][index]],
            ["NAR", outputs["nar"][index]],
        ]
        print(format_table(rows, align="l") + "\n")
