"""The laboratory's door: the papers' claims, a run's health, a step's speed."""
from lab.bench import BenchConfig, bench, speed_table
from minibert.__main__ import positive
from minibert.config import Parser, add_flags
from minibert.errors import run_cli
from minibert.files.run_folder import ROOT, read_json


def main() -> None:
    parser = Parser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    claims = commands.add_parser("compare", help="run what the claims need and judge each claim")
    claims.add_argument("--name", default="mine", help="the folder in runs/ and results/ [mine]")
    claims.add_argument("--corpus", default="pydocs", help="a name in data/ or a path [pydocs]")
    claims.add_argument("--grid", default="auto", choices=("auto", "quick", "full"),
                        help="the size of the runs; auto is quick, or full on a GPU [auto]")
    claims.add_argument("--seeds", type=positive, default=3, help="runs of each arm [3]")
    claims.add_argument("--only", default="", metavar="IDS", help="claims, separated by commas")
    claims.add_argument("--jobs", type=positive, help="runs at the same time [one for each core]")
    claims.add_argument("--tokens", type=positive, help="tokens of a run, instead of the grid's")
    claims.add_argument("--vocab-size", type=positive, help="a size instead of the grid's")
    claims.add_argument("--plan", dest="plan_only", action="store_true", help="print every run's "
                        "command instead, with the line that must be done before it, for another "
                        "engine to run")
    again = commands.add_parser("report", help="judge a comparison again: its report and figures")
    again.add_argument("name", help="the comparison in results/NAME")
    speed = commands.add_parser("bench", help="time a step of each kind")
    add_flags(speed, BenchConfig)
    check = commands.add_parser("doctor",
                                help="show a run beside the published ones: is it normal?")
    check.add_argument("run", help="a run folder, finished or not")
    given = vars(parser.parse_args())
    command = given.pop("command")

    if command == "compare":
        from lab.compare import compare
        from lab.report import claims_table, write_report
        if results := compare(**given):
            name = given["name"]
            write_report(results, ROOT / "results" / name)
            print(f"{claims_table(results)}\n\nresults/{name}/report.md has more")
    elif command == "report":
        from lab.report import write_report
        folder = ROOT / "results" / given["name"]
        write_report(read_json(folder / "results.json", "is missing; make it with compare"), folder)
    elif command == "bench":
        print(speed_table(bench(BenchConfig(**given))["steps"]))
    else:
        from lab.doctor import doctor
        print(doctor(given["run"]))


if __name__ == "__main__":
    run_cli(main)
