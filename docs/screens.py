"""Draws what five commands print on a terminal of 100 columns: ``python docs/screens.py``."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
COLUMNS = 100
COMMANDS = {
    "help": ["--help"],
    "compare": ["compare", "swin_t", "cswin_t", "pale_t", "swin_t/3=pale:size=7"],
    "flops": ["flops", "swin_t/3=pale:size=7"],
    "complexity": ["complexity"],
    "train-compare": ["train", "compare", "--table",
                      "benchmarks/results/xeon-amx/learning/fashion.jsonl"],
}  # fmt: skip


def printed(argv: list[str]) -> str:
    """What a command writes to a terminal, with its colours."""
    import fcntl
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-m", "transom", *argv]
    process = subprocess.Popen(
        command, stdout=follower, stderr=subprocess.DEVNULL, cwd=HERE.parent,
        env={**env, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(follower)
    found = b""
    try:
        while part := os.read(leader, 65536):
            found += part
    except OSError:  # Linux says so where the command has ended
        pass
    process.wait()
    return found.decode().replace("\r", "")


def main() -> None:
    for name, argv in COMMANDS.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO())
        console.print(Text.from_ansi(f"$ transom {' '.join(argv)}\n{printed(argv)}"))
        svg = console.export_svg(title="transom", unique_id=name)
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # fonts of a server
        svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
        (HERE / "screens" / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    main()
