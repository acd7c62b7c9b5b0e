"""Writes a backbone to a file that runs without this code: ONNX, or torch.export's .pt2.

Weights are those of --weights, or as initialised.  With --dynamic batch,size one graph holds for
every batch and every height and width of which the last stage still makes two rows and columns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attention.configs.registry import name_of
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from transom import cli, files, table
from transom.errors import SpecError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

EPILOG = """examples:
  python -m backbones.export swin_t --format onnx --dynamic batch --check
  python -m backbones.export "swin_t/3=full" --format pt2 --dynamic batch,size --out hybrid.pt2

exit code: 0 written (with --check: and equal to eager), 1 --check found more than the tolerance,
2 the request cannot be answered"""

TOLERANCE = {"onnx": 1e-4, "pt2": 1e-5}
DYNAMIC = ("batch", "size")
MAX_BATCH, MAX_SIZE = 1024, 8192
TRACED = (3, 1000, 1300)  # (b, h, w) of a dynamic graph: padding, shifts and groups all occur


class Request(NamedTuple):
    """Sizes that a graph leaves free: any batch, any image size."""

    batch: bool
    size: bool

    def shapes(self, spec: BackboneSpec, batches: Sequence[int]) -> list[tuple[int, ...]]:
        """(b, h, w) of several inputs the graph must take."""
        sizes, least = [spec.img_size], least_size(spec)
        if self.size:
            sizes += [(least, least + 7), (3 * least + 1, 2 * least)]
        return [(b, *s) for s in sizes for b in (batches if self.batch else [1])]


def least_size(spec: BackboneSpec) -> int:
    """The smallest height and width of a dynamic graph: two rows and columns in every stage."""
    return spec.patch_size * 2 ** (len(spec.stages) - 1) + 1


@contextlib.contextmanager
def one_graph() -> Iterator[None]:
    """Context in which torch.export and torch.compile make one graph for sizes that are free.

    By default torch makes another graph for a size of 1 (one image, a map of one group) and takes
    sizes that are equal in the first call (a square) for equal in all.

    Returns:
        A context manager.

    Example:
        >>> import backbones, torch
        >>> from backbones import export
        >>> model = backbones.create("swin_t/stages=2").eval()
        >>> with export.one_graph():
        ...     compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    """
    from torch.fx.experimental import _config as config

    with config.patch(backed_size_oblivious=True, use_duck_shape=False):  # type: ignore[attr-defined]
        yield


def require(format: str) -> None:
    """Raises SpecError, in one line, when what a format needs is not installed."""
    if format != "onnx":
        return
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxscript")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise SpecError(f"--format onnx needs {error.name}: pip install transom[export]") from None


def program(model: nn.Module, spec: BackboneSpec, request: Request) -> Any:
    """The exported graph.  Raises SpecError when a mixer's arithmetic does not allow a request."""
    import torch

    least = least_size(spec)
    b = TRACED[0] if request.batch else 1
    h, w = TRACED[1:] if request.size else spec.img_size
    dims: dict[int, Any] = {}
    if request.batch:
        dims[0] = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if request.size:
        dims[2] = torch.export.Dim("height", min=least, max=MAX_SIZE)
        dims[3] = torch.export.Dim("width", min=least, max=MAX_SIZE)
    images = torch.zeros(b, spec.in_channels, h, w)
    try:
        with torch.no_grad(), one_graph():
            return torch.export.export(
                model, (images,), dynamic_shapes=(dims,) if dims else None,
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
    except Exception as error:  # torch.export raises what the mixer's arithmetic raised
        mixers = sorted({name_of(type(mixer)) for stage in spec.stages for mixer in stage.mixers})
        what = "a dynamic size" if request.size else "a dynamic batch" if dims else "a fixed shape"
        raise SpecError(f"{spec.name}: {', '.join(mixers)}: {what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Type and first line of an error, short enough for a cell of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {lines[0] if lines else ''}")


def write(graph: Any, format: str, out: Path) -> None:
    """Writes a graph to a file, which is replaced at once by `files.write`.  Raises SpecError."""
    import torch

    try:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "model")
            if format == "pt2":
                with temporary.open("wb") as stream:
                    torch.export.save(graph, stream)
            else:
                onnx_program(graph).save(str(temporary), external_data=False)
            files.write(out, temporary.read_bytes())
    except OSError as error:
        raise SpecError(f"--out {out}: {error.strerror or error}") from None


def onnx_program(graph: Any) -> Any:
    """The graph as an ONNX program.  Raises SpecError where ONNX lacks an operator."""
    import torch

    try:
        with torch.no_grad(), one_graph():
            return torch.onnx.export(graph, dynamo=True, verbose=False, optimize=True)
    except torch.onnx.errors.OnnxExporterError as error:
        raise SpecError(f"--format onnx: {reason(error)}") from error


def runner(format: str, file: Path) -> Any:
    """The written file as a function of a batch of images."""
    import torch

    if format == "pt2":
        return torch.export.load(file).module()
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = importlib.import_module("onnxruntime").InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"]
    )
    (name,) = [given.name for given in session.get_inputs()]
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def largest_difference(run: Any, model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Largest difference of a graph and the eager model; another shape or NaN is infinite."""
    import torch

    worst = 0.0
    with torch.no_grad():
        for x in inputs:
            found, wanted = run(x), model(x)
            if found.shape != wanted.shape:
                return math.inf
            difference = float((found - wanted).abs().amax())
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def draw(shapes: Sequence[tuple[int, ...]], channels: int) -> list[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, channels, h, w, generator=generator) for b, h, w in shapes]


def dynamic_axes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(DYNAMIC):
        raise argparse.ArgumentTypeError(f"{text!r}: expected batch, size or batch,size")
    return names


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones.export", __doc__, EPILOG)
    parser.add_argument("spec", help="a notation, a variant, an alias or a .toml file")
    parser.add_argument("--format", choices=tuple(TOLERANCE), help="default: by --out, else pt2")
    parser.add_argument("--out", action=files.OutFile, metavar="FILE", help="default: model.FORMAT")
    parser.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors in our names")
    parser.add_argument("--dynamic", type=dynamic_axes, default=(), metavar="batch,size")
    parser.add_argument("--img-size", type=cli.image_size, metavar="SIZE", help="default: own")
    parser.add_argument("--check", action="store_true", help="run the file beside eager")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    spec = parse(args.spec)
    if args.img_size:
        spec = replace(spec, img_size=args.img_size)
    ending = args.out.suffix[1:] if args.out else ""
    format = args.format or (ending if ending in TOLERANCE else "pt2")
    out = files.checked(args.out or Path(f"model.{format}"))
    require(format)
    from backbones.factory import create

    model = create(spec, weights=args.weights).eval()
    spec = model.spec
    request = Request("batch" in args.dynamic, "size" in args.dynamic)
    write(program(model, spec, request), format, out)
    size = "x".join(map(str, spec.img_size))
    if request.size:
        size = f"height and width from {least_size(spec)} to {MAX_SIZE}"
    batch = "any" if request.batch else 1
    cli.emit(table.plain(f"{out}: {spec.name}, batch {batch}, {size}"), None)
    if not args.check:
        return cli.AGREED
    inputs = draw(request.shapes(spec, (1, 2, 3)), spec.in_channels)
    error = largest_difference(runner(format, out), model, inputs)
    print(f"largest difference to eager over {len(inputs)} inputs: {error:.3g} "
          f"(tolerance {TOLERANCE[format]:g})")  # fmt: skip
    return cli.AGREED if error <= TOLERANCE[format] else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
