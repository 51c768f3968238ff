"""``lit-eff calibrate``: certify exit thresholds on a checkpoint; writes ``exits.json`` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lit_eff.calibration.certify import Progress as Report
from lit_eff.calibration.certify import check_sequences
from lit_eff.cli.arguments import Parser
from lit_eff.cli.calibration_run import add_device, bars, calibration_device, resumable
from lit_eff.errors import UserError
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.claim import sentence

if TYPE_CHECKING:
    from lit_eff.calibration.config import CalibrationConfig
    from lit_eff.calibration.job import Ints
    from lit_eff.cli.compose import Recipe
    from lit_eff.data import ClassificationData, LanguageModelData
    from lit_eff.models.checkpoint import LoadedCheckpoint

CERTIFICATE = "exits.json"
# Where vectors and their order are learned: its documents trained nothing, and certify nothing.
LEARNING = "validation"
COUNTS = {
    LEARNING: "calibration.learning_sequences",
    "calibration": "calibration.sequences",
    "test": "calibration.test_sequences",
}


def main(argv: list[str]) -> int:
    """Calibrate and print the guarantee; with ``--json`` the certificate's content."""
    if "--update" in {word.partition("=")[0] for word in argv}:
        from lit_eff.cli import recalibrate

        return recalibrate.main(argv)
    parser = _parser()
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        return 0
    from lit_eff.cli.lightning import recipe_of, split_arguments  # Lightning takes seconds to import

    # Apart, since split_arguments takes the word after an option for its value.
    as_json, argv = "--json" in argv, [word for word in argv if word != "--json"]
    config, overrides, rest = split_arguments(argv)
    options = parser.parse(rest)
    recipe = recipe_of(config, overrides, ["--ckpt_path", str(options.ckpt_path)])
    output = options.output or options.ckpt_path.parent / CERTIFICATE
    certificate = calibrate_checkpoint(options.ckpt_path, recipe, output, options.device)
    if as_json:
        print(json.dumps({"certificate": str(output), **certificate.model_dump(mode="json")}, indent=2))
    else:
        summary = output.with_suffix(".md")
        print(f"{sentence(certificate)}\n{output} (assumptions, plots and the grid: {summary})")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lit-eff calibrate",
        description=__doc__,
        usage="%(prog)s --ckpt_path CKPT [options] [calibration.delta=0.1 ...]",
        epilog="group=choice and a.b=1 change the recipe. `lit-eff calibrate --update BUNDLE --log FILE` "
        "recalibrates a bundle from logged traffic; see its own --help.",
    )
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="CKPT", help="a checkpoint of `lit-eff fit`")
    add("--config", metavar="RECIPE", help="its data and calibration sections; default: the checkpoint's own")
    add("--output", type=Path, metavar="FILE", help=f"default: {CERTIFICATE} beside the checkpoint")
    add_device(parser)
    add("--json", action="store_true", help="print the certificate as JSON")
    return parser


def calibrate_checkpoint(ckpt_path: Path, recipe: Recipe, output: Path, device: str = "auto") -> Certificate:
    """Calibrate a checkpoint on the recipe's data; writes the certificate, its summary and plots.

    The summary is a Markdown file beside ``output`` with the plots as a PNG, which also go to the run's
    TensorBoard folder. An interrupted calibration goes on where it was.

    Args:
        device: one of :data:`lit_eff.cli.calibration_run.DEVICES`.

    Raises:
        UserError: for anything wrong with the checkpoint, the recipe or the data; nothing is written then.
    """
    from torch.utils.tensorboard import SummaryWriter

    from lit_eff.calibration.job import calibrate
    from lit_eff.calibration.report import write_report, write_tensorboard
    from lit_eff.data import ClassificationData

    loaded, config, data = _open(ckpt_path, recipe, device)
    with resumable(output, f"lit-eff calibrate --ckpt_path {ckpt_path}") as work:
        with bars() as progress:
            if isinstance(data, ClassificationData):
                certificate = _classifier(loaded, data, config, progress)
            else:
                given = _prompts(loaded, config, data)
                certificate = calibrate(
                    *(loaded, given.prompts, given.held_out, config),
                    split_hashes=given.split_hashes,
                    learning_prompts=given.learning,
                    progress=progress,
                    work=work,
                )
        certificate.save(output)
    if certificate.train_sha256 is None:
        Console(stderr=True).print(
            "[yellow]warning:[/] this data is not split as it was in training, so the model may have been "
            "trained on calibration documents; the guarantee then does not extend to unseen text"
        )
    write_report(certificate, output.with_suffix(".md"))
    writer = SummaryWriter(_run_folder(ckpt_path))
    write_tensorboard(certificate, writer)
    writer.close()
    return certificate


@dataclass(frozen=True)
class CalibrationInputs:
    """What a language model is calibrated with: the section of its recipe, and prompts of both splits.

    Attributes:
        prompts, held_out: int64 ``(B, config.prompt_length + config.reference_length)``, of the calibration
            and the test split.
        learning: of the validation split, where the procedure learns vectors of thresholds.
    """

    loaded: LoadedCheckpoint
    config: CalibrationConfig
    prompts: Ints
    held_out: Ints
    split_hashes: Mapping[str, str]
    learning: Ints | None = None


def calibration_inputs(ckpt_path: Path, recipe: Recipe, device: str = "auto") -> CalibrationInputs:
    """Read a language model's checkpoint, onto ``device`` as in :func:`calibrate_checkpoint`, and its data.

    Raises:
        UserError: for anything wrong with the checkpoint, the recipe or the data, or another kind of model.
    """
    from lit_eff.data import LanguageModelData

    loaded, config, data = _open(ckpt_path, recipe, device)
    if not isinstance(data, LanguageModelData):
        raise UserError(f"re-splits need text data (LanguageModelData); the recipe has {type(data).__name__}")
    return _prompts(loaded, config, data)


def _open(
    ckpt_path: Path, recipe: Recipe, device: str
) -> tuple[LoadedCheckpoint, CalibrationConfig, ClassificationData | LanguageModelData]:
    from lit_eff.cli.lightning import instantiate_data, typed_section
    from lit_eff.data import ClassificationData, LanguageModelData
    from lit_eff.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(ckpt_path)
    config = typed_section(recipe, "calibration")
    check_sequences(config, config.sequences)  # before any time is spent
    loaded.model.to(calibration_device(device))
    data = instantiate_data(recipe)
    wanted = ClassificationData if loaded.model.config.labels else LanguageModelData
    if not isinstance(data, wanted):
        raise UserError(
            f"calibrating this checkpoint needs {wanted.__name__}; the recipe has {type(data).__name__}"
        )
    if data.tokenizer_json != loaded.tokenizer_json:
        raise UserError("the recipe's data makes another tokenizer than the checkpoint was trained with")
    return loaded, config, data


def _prompts(
    loaded: LoadedCheckpoint, config: CalibrationConfig, data: LanguageModelData
) -> CalibrationInputs:
    from lit_eff.calibration.job import take_prompts

    if config.prompt_length is None:
        raise UserError("calibration.prompt_length is null; expected how many tokens begin each document")
    take = partial(take_prompts, length=config.prompt_length, reference=config.reference_length)
    learning, used = None, []
    if config.learns:
        # First of all: what is learned from has nothing to do with what calibrates.
        learning = take(data.documents(LEARNING), split=LEARNING, count=config.learning_sequences)
        used = list(learning)
    prompts = take(data.documents("calibration"), split="calibration", count=config.sequences, exclude=used)
    used += list(prompts)
    held_out = take(data.documents("test"), split="test", count=config.test_sequences, exclude=used)
    return CalibrationInputs(loaded, config, prompts, held_out, _split_hashes(data), learning)


def _classifier(
    loaded: LoadedCheckpoint, data: ClassificationData, config: CalibrationConfig, progress: Report
) -> Certificate:
    from lit_eff.calibration.classifier import Batch, calibrate_classifier

    def batches(split: str, count: int) -> list[Batch]:
        examples = data.examples(split, shuffle=False)
        if len(examples) < count:
            raise UserError(
                f"the {split} split has {len(examples)} documents; {count} are asked for; lower "
                f"{COUNTS[split]}, or raise the split's share in data.splits.{split}"
            )
        wanted = [(0, index) for index in range(count)]
        starts = range(0, count, config.batch_size)
        return [examples.batch(wanted[start : start + config.batch_size]) for start in starts]

    return calibrate_classifier(
        loaded,
        batches("calibration", config.sequences),
        batches("test", config.test_sequences),
        config,
        split_hashes=_split_hashes(data),
        learning=batches(LEARNING, config.learning_sequences) if config.learns else None,
        progress=progress,
    )


def _split_hashes(data: ClassificationData | LanguageModelData) -> dict[str, str]:
    return {**data.split_hashes, "learning": data.split_hashes[LEARNING]}


def _run_folder(ckpt_path: Path) -> Path:
    return ckpt_path.parent.parent if ckpt_path.parent.name == "checkpoints" else ckpt_path.parent
