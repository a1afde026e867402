"""Command line of the demo build: `python -m offline.demo {tokenizer,train,export}`."""

import argparse
from pathlib import Path

from offline.demo.export import export
from offline.demo.tokenizer import train_tokenizer
from offline.demo.train import Schedule, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m offline.demo", description=__doc__)
    parser.add_argument("stage", choices=["tokenizer", "train", "export"])
    parser.add_argument("--data", type=Path, help="folder of NAME.{train,test}.jsonl.gz prompt files")
    parser.add_argument("--build", type=Path, default=Path("build/demo"), help="checkpoint and tokenizer folder")
    parser.add_argument("--out", type=Path, default=Path("server/demo/model"), help="where export writes")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of about 7,000 tokens")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.build, arguments.out)
    elif arguments.data is None:
        parser.error(f"{arguments.stage} needs --data")
    elif arguments.stage == "tokenizer":
        train_tokenizer(arguments.data, arguments.build / "tokenizer")
    else:
        train(arguments.data, arguments.build, Schedule(arguments.steps), arguments.device)


if __name__ == "__main__":
    main()
