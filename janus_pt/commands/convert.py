"""Convert checkpoints, exported models and adapters.

  for another layout:    janus-pt convert checkpoint runs/janus/checkpoints/step_1000
  as an exported model:  janus-pt convert export runs/janus/checkpoints/step_1000 --output model
  the mean of several:   janus-pt convert export runs/janus --best 5 --output model
  from Hugging Face:     janus-pt convert huggingface --model bart --output model
  to Hugging Face:       janus-pt convert to-huggingface model --output model_hf
  for CTranslate2:       janus-pt convert ctranslate2 model --output model_ct2
  for peft:              janus-pt convert peft lora --base model_hf --output lora_peft
  from peft:             janus-pt convert from-peft lora_peft --base model --output lora
  in MLflow's registry:  janus-pt convert mlflow model --name summary --alias champion
  from fairseq:          janus-pt convert fairseq --checkpoint nmt.pt --dictionary dict.txt --codes codes --output model

The first writes `universal_1000` beside the checkpoint. Training with --resume auto takes it when
the layout has changed; without it, one process would convert at the start while all others wait.
One process, no accelerator; in memory is one parameter with its optimizer state at a time, for a
mean one parameter of each checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from janus_pt.utils.commands import Command, module_command

# DeepSpeed looks at this when it is imported, which the commands do.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `checkpoint`."""
    parser.add_argument("checkpoint", type=Path, help="a folder step_N of a run's checkpoints")
    parser.add_argument(
        "--output", type=Path, help="the folder to write (default: universal_N beside it)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that convert")


def convert_checkpoint(args: argparse.Namespace) -> None:
    """Convert for any layout, and name the folder that was written."""
    import janus_pt.parallel.light_imports  # noqa: F401  before all else that imports DeepSpeed
    from janus_pt.checkpoint.restore import convert

    print(convert(args.checkpoint, args.output, args.workers))


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `export`."""
    parser.add_argument(
        "folder",
        type=Path,
        nargs="+",
        help="folders step_N; with --last or --best the run's folder",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--last", type=int, metavar="K", help="the mean of the run's last K checkpoints"
    )
    number.add_argument(
        "--best", type=int, metavar="K", help="the mean of the K with the best validations"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="default: the tokenizer of the run's corpus; where sources have one of their own, "
        "give both, the sources' last",
    )


def export_checkpoint(args: argparse.Namespace) -> None:
    """Write an exported model, and name its folder."""
    import janus_pt.parallel.light_imports  # noqa: F401  before all else that imports DeepSpeed
    from janus_pt.checkpoint.average import export_mean, select_checkpoints

    checkpoints = select_checkpoints(args.folder, args.last, args.best)
    print(export_mean(checkpoints, args.output, args.tokenizer))


HUGGING_FACE = "docs/guides/huggingface.md"
COMMANDS = {
    "checkpoint": Command("for any layout", add_checkpoint_arguments, convert_checkpoint),
    "export": Command("as an exported model", add_export_arguments, export_checkpoint),
    "huggingface": module_command(
        "janus_pt.export.from_huggingface", "a BART, mBART, Marian or M2M-100 model", HUGGING_FACE
    ),
    "to-huggingface": module_command(
        "janus_pt.export.to_huggingface", "for transformers", HUGGING_FACE
    ),
    "ctranslate2": module_command("janus_pt.export.to_ctranslate2", "for CTranslate2"),
    "peft": module_command("janus_pt.export.to_peft", "a LoRA adapter for peft"),
    "fairseq": module_command("janus_pt.export.from_fairseq", "a model of the authors' code"),
    "from-peft": module_command("janus_pt.export.from_peft", "a LoRA adapter of peft"),
    "mlflow": module_command(
        "janus_pt.registry.register", "as a registered MLflow model", "docs/guides/mlflow.md"
    ),
}
