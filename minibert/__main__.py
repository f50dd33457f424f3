"""Everything but training the models, which the three scripts do."""
from minibert.config import (RUN_PRESETS, BenchConfig, FinetuneConfig, ModelConfig, Parser,
                             add_flags, pick_preset)
from minibert.errors import run_cli


def positive(text: str) -> int:
    """Read a flag's number, which is 1 or more. Raises ValueError on anything else."""
    if not text.isdecimal() or not int(text):
        raise ValueError
    return int(text)


def main() -> None:
    parser = Parser(prog="python -m minibert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="prepare a corpus, so that runs start at once")
    prepare.add_argument("--corpus", default="pydocs", help="a name in data/ or a path [pydocs]")
    prepare.add_argument("--preset", default="auto", choices=("auto", *RUN_PRESETS),
                         help="the preset whose vocabulary size is used [auto]")
    prepare.add_argument("--vocab-size", type=positive, help="a size instead of the preset's")
    check = commands.add_parser("doctor",
                                help="show a run beside the published ones: is it normal?")
    check.add_argument("run", help="a run folder, finished or not")
    table = commands.add_parser("table", help="show finished runs side by side")
    table.add_argument("runs", nargs="+", help="run folders")
    blanks = commands.add_parser("fill-mask", help="guess the words for [MASK] in a text")
    blanks.add_argument("runs", nargs="+", help="run folders, to be shown side by side")
    blanks.add_argument("text", help="a text with [MASK] in it")
    blanks.add_argument("--top", type=positive, default=5, help="how many words to show [5]")
    tune = commands.add_parser("finetune", help="train a classifier on a run's encoder")
    tune.add_argument("run", help="the folder of a run or of a Hugging Face model")
    add_flags(tune, FinetuneConfig)
    judge = commands.add_parser("classify", help="classify texts with a fine-tuned model")
    judge.add_argument("run", help="a folder that finetune made")
    judge.add_argument("texts", nargs="+", help="a text or a pair")
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
    again = commands.add_parser("report", help="write a comparison's report and figures again")
    again.add_argument("name", help="the comparison in results/NAME")
    speed = commands.add_parser("bench", help="time a step of each kind")
    add_flags(speed, BenchConfig)
    steps = commands.add_parser("walk", help="show one batch at every station from text to loss",
                                epilog="Every flag of the recipe's script is understood as well.")
    steps.add_argument("recipe", choices=("bert", "roberta", "distilbert"))
    steps.add_argument("--run", default="", help="a finished run, whose weights and text to use")
    args, flags = parser.parse_known_args()
    given = vars(args)
    command = given.pop("command")
    if flags and command != "walk":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")

    if command == "prepare":
        from minibert.files.corpus import describe
        vocab_size = args.vocab_size or ModelConfig.preset(pick_preset(args.preset)).vocab_size
        print(describe(args.corpus, "wordpiece", vocab_size))
    elif command == "fill-mask":
        from minibert.tools.fill_mask import fill_mask
        print(fill_mask(args.runs, args.text, args.top))
    elif command == "finetune":
        from minibert.tasks.finetune import describe, finetune
        print(describe(finetune(given.pop("run"), FinetuneConfig(**given))))
    elif command == "classify":
        from minibert.tasks.finetune import classify
        print(classify(args.run, tuple(args.texts)))
    elif command == "compare":
        from minibert.claims.compare import ROOT, compare
        from minibert.claims.verdicts import verdict_lines, write_report
        results = compare(**given)
        if args.plan_only:
            print(results)
            return
        write_report(results, ROOT / "results" / args.name)
        print(f"{verdict_lines(results)}\n\nresults/{args.name}/report.md has more")
    elif command == "bench":
        from minibert.tools.bench import bench, speed_table
        print(speed_table(bench(BenchConfig(**given))["steps"]))
    elif command == "walk":
        from minibert.tools.walk import walk
        print(walk(args.recipe, flags, args.run))
    elif command == "doctor":
        from minibert.tools.doctor import doctor
        print(doctor(args.run))
    elif command == "report":
        from minibert.claims.verdicts import write_report
        from minibert.files.run_folder import ROOT, read_json
        folder = ROOT / "results" / args.name
        write_report(read_json(folder / "results.json", "is missing; make it with compare"), folder)
    else:
        from minibert.tools.table import family_table
        print(family_table(args.runs))


if __name__ == "__main__":
    run_cli(main)
