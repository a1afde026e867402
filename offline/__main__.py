"""Command line of the offline tools: `knn-ssd-offline COMMAND [options]`, or `python -m offline`."""

import logging
import sys

from transformers.utils import logging as transformers_logging

from offline.calibration.pipeline import Stage, calibrate
from offline.capacity.capacity import capacity
from offline.evaluation.evaluate import evaluate
from offline.evaluation.methods import MethodSettings
from offline.evaluation.plot import draw_speedups, draw_temperatures
from offline.evaluation.summary import table
from offline.fidelity.fidelity import fidelity
from offline.fidelity.fidelity import table as fidelity_table
from offline.fidelity.plot import draw_fidelity
from offline.fidelity.variants import FidelitySettings
from offline.prompts import PromptError
from offline.settings import CalibrationSettings, CapacitySettings, SettingsMistake, StudySettings, read_settings
from offline.study.study import study
from server.engine import ArtifactError, CheckpointError

USAGE = """usage: knn-ssd-offline COMMAND [options]

Commands:
  calibrate   all stages below, in order: prompts in, routing artifact out
  collect     1: token ids, prompt vectors, domains
  anchors     2: the points that the router compares prompts with
  search      3: the sub-layers that each domain's drafts skip
  pack        4: the routing artifact
  study       checks a calibration: its score, its search, its budget
  evaluate    speed, acceptance and exactness of methods side by side
  fidelity    what few bits and rounded activations cost in fidelity and give in speed
  capacity    replicas that a rate of requests needs, simulated from measured costs

`knn-ssd-offline COMMAND --help` lists the options; each is a KNNSSD_* environment variable too.
Finished stages are reused, so a command that was interrupted goes on where it was."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 where it worked, 2 with one line on stderr where the input was wrong."""
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("offline").setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        run(command, options)
    except (SettingsMistake, PromptError, CheckpointError, ArtifactError, OSError) as error:
        print(f"knn-ssd-offline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("knn-ssd-offline: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run(command: str, options: list[str]) -> None:
    if command == "evaluate":
        run_evaluation(read_settings(MethodSettings, command, options))
    elif command == "fidelity":
        run_fidelity(read_settings(FidelitySettings, command, options))
    elif command == "capacity":
        print(capacity(read_settings(CapacitySettings, command, options)))
    elif command == "study":
        print(study(read_settings(StudySettings, command, options)).model_dump_json())
    elif command == "calibrate" or command in list(Stage):
        last = Stage.PACK if command == "calibrate" else Stage(command)
        print(calibrate(read_settings(CalibrationSettings, command, options), last).message)
    else:
        known = ["calibrate", *Stage, "study", "evaluate", "fidelity", "capacity"]
        raise SettingsMistake(f"unknown command {command!r}; known are {', '.join(known)}")


def run_evaluation(settings: MethodSettings) -> None:
    rows = {}
    for evaluation in evaluate(settings):
        rows[evaluation.temperature] = evaluation.results
        if not settings.json_only:
            print(table(evaluation.results))
            if evaluation.routing_accuracy is not None:
                print(f"\nrouted to their own domain: {evaluation.routing_accuracy:.1%}\n")
        print(evaluation.model_dump_json(), flush=True)
    if settings.plot is None:
        return
    if len(rows) > 1:
        draw_temperatures(rows, settings.plot)
    else:
        (only,) = rows.values()
        draw_speedups(only, settings.plot)


def run_fidelity(settings: FidelitySettings) -> None:
    found = fidelity(settings)
    print(fidelity_table(found.results), file=sys.stderr)
    print(found.model_dump_json())
    if settings.plot is not None:
        draw_fidelity(found.results, settings.plot)


if __name__ == "__main__":
    sys.exit(main())
