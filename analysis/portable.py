"""Export of each family's backbone: torch.compile, torch.export, ONNX.

Every export is run: with random parameters, at three sizes that windows do not divide and batches
of 1 to 8.  A cell has the largest difference to the eager reference, or "no" for a refusal.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones import export
from backbones.export import Request
from transom import cli, table
from transom.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

EPILOG = """examples:
  python -m analysis.portable --format md
  python -m analysis.portable --backbone "swin_t/3=pale:size=7/4=full"

exit code: 0 everything that runs is within the tolerance (pt2 1e-5, ONNX 1e-4), 1 something is
not, 2 the request cannot be answered"""

SMALL = (
    "stages=2/1.dim=8/1.heads=2/1.depth=2/2.dim=16/2.heads=2/2.depth=1/num_classes=10/img_size=64"
)
FAMILIES = {
    "Swin": "swin_t", "Swin V2": "swinv2_t_w8", "Swin-MLP": "swin_mlp_t_c24", "CSWin": "cswin_t",
    "Pale": "pale_t", "axial": "axial_t", "shuffle": "shuffle_t", "full": "full_t",
    "PVT v2": "pvt_v2_b0", "PVT v2 linear": "pvt_v2_b2_li", "Twins-SVT": "twins_svt_s",
    "window+axial, cross": "swin_t/1=window+axial/2=cross:size=2",
}  # fmt: skip
REQUESTS = {
    "fixed": Request(False, False), "batch": Request(True, False), "batch,size": Request(True, True)
}  # fmt: skip
NOTE = (
    "largest difference to eager; compile: graphs made for batch 1 to 8 at three sizes "
    "(dynamic=True, fullgraph=True, within backbones.export.one_graph())"
)


def compiles(model: nn.Module, inputs: Sequence[Tensor]) -> int | str:
    """Number of graphs that torch.compile makes for all inputs; "partial" for a graph break, "no"
    for a failure, "differs" for an unequal result."""
    import torch

    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for fullgraph in (True, False):
        torch._dynamo.reset()
        graphs.clear()
        run = torch.compile(model, backend=backend, dynamic=True, fullgraph=fullgraph)
        try:
            with export.one_graph(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
                if export.largest_difference(run, model, inputs) > export.TOLERANCE["pt2"]:
                    return "differs"
        except Exception:  # of any kind: there is no single graph
            continue
        finally:
            torch._dynamo.reset()
        return len(graphs) if fullgraph else "partial"
    return "no"


def row_of(name: str, text: str) -> table.Row:
    """A row: number of graphs, then a difference or "no" per format and request."""
    from analysis.models.influence import randomise
    from attention.execution.backends import backend
    from backbones.factory import create

    model = create(text)
    randomise(model).eval()
    spec = model.spec

    def inputs(request: Request) -> list[Tensor]:
        return export.draw(request.shapes(spec, range(1, 9)), spec.in_channels)

    row: table.Row = {"family": name}
    notes = []
    with backend("reference"), tempfile.TemporaryDirectory() as folder:
        row["compile"] = compiles(model, inputs(REQUESTS["batch,size"]))
        for format in export.TOLERANCE:
            for request_name, request in REQUESTS.items():
                file = Path(folder) / f"model.{format}"
                column = f"{format} {request_name}"
                try:
                    export.require(format)
                    export.write(export.program(model, spec, request), format, file)
                    run = export.runner(format, file)
                    row[column] = export.largest_difference(run, model, inputs(request))
                except SpecError as error:
                    row[column] = "no"
                    notes.append(f"{column}: {error}")
    row["note"] = "; ".join(dict.fromkeys(notes)) or None
    return row


def within(row: table.Row) -> bool:
    """True if every difference of a row is within the tolerance of its format."""
    return row["compile"] != "differs" and all(
        not isinstance(value, float) or value <= export.TOLERANCE[column.split()[0]]
        for column, value in row.items()
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.portable", __doc__, EPILOG)
    cli.add_backbones(
        parser, "default: two small stages of every family", needed=False
    )  # fmt: skip
    cli.add_output(parser, table.REPORT_FORMATS)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    named = {text: text for text in args.backbone}
    named = named or {name: f"{text}/{SMALL}" for name, text in FAMILIES.items()}
    from backbones.specs.notation import parse

    for text in named.values():
        parse(text)
    from transom.progress import Bar

    rows = [row_of(*item) for item in Bar(named.items(), unit="row")]
    style = cli.chosen_format(args)
    cli.emit(table.render(rows, style, title="Where backbones run", note=NOTE), args)
    return cli.AGREED if all(map(within, rows)) else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
