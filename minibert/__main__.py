"""python -m minibert COMMAND: what is not a recipe; --help names the commands."""
import json
import sys

from minibert.config import (RUN_PRESETS, BenchConfig, FinetuneConfig, ModelConfig, Parser,
                             add_flags, pick_preset)
from minibert.errors import run_cli


def positive(text: str) -> int:
    """A flag's number, 1 or more."""
    if not text.isdecimal() or not int(text):
        raise ValueError
    return int(text)


def main() -> None:
    parser = Parser(prog="python -m minibert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="make a corpus ready, so that runs find it so")
    prepare.add_argument("--corpus", default="pydocs", help="a name in data/ or a path [pydocs]")
    prepare.add_argument("--tokenizer", default="wordpiece", choices=("wordpiece", "bpe"))
    prepare.add_argument("--preset", default="auto", choices=("auto", *RUN_PRESETS),
                         help="whose vocabulary size is to be used [auto]")
    prepare.add_argument("--vocab-size", type=positive, help="another size than the preset's")
    info = commands.add_parser("info", help="what a run is")
    info.add_argument("run", help="a run folder")
    table = commands.add_parser("table", help="finished runs side by side")
    table.add_argument("runs", nargs="+", help="run folders")
    blanks = commands.add_parser("fill-mask", help="the likeliest words for [MASK] in a text")
    blanks.add_argument("runs", nargs="+", help="run folders, shown side by side")
    blanks.add_argument("text", help='text with [MASK] in it; "-" reads lines from stdin')
    blanks.add_argument("--top", type=positive, default=5, help="words to show [5]")
    tune = commands.add_parser("finetune", help="train a classifier on a run's encoder")
    tune.add_argument("run", help="a run or Hugging Face folder")
    add_flags(tune, FinetuneConfig)
    judge = commands.add_parser("classify", help="a fine-tuned model's classes for a text")
    judge.add_argument("run", help="a folder that finetune made")
    judge.add_argument("texts", nargs="+", help='a text or a pair; "-" reads lines from stdin')
    claims = commands.add_parser("compare", help="run the claims' arms and judge each claim")
    claims.add_argument("--name", default="mine", help="of runs/NAME and results/NAME [mine]")
    claims.add_argument("--corpus", default="pydocs", help="a name in data/ or a path [pydocs]")
    claims.add_argument("--preset", default="auto", choices=("auto", *RUN_PRESETS))
    claims.add_argument("--seeds", type=positive, default=3, help="runs of each arm [3]")
    claims.add_argument("--only", default="", metavar="IDS", help="claims, with commas between")
    claims.add_argument("--jobs", type=positive, help="runs side by side [one a core]")
    claims.add_argument("--tokens", type=positive, help="another budget than the grid's")
    claims.add_argument("--vocab-size", type=positive, help="another one than the grid's")
    again = commands.add_parser("report", help="write a comparison's report and figures again")
    again.add_argument("name", help="of results/NAME")
    speed = commands.add_parser("bench", help="how fast the steps are, beside other code's")
    add_flags(speed, BenchConfig)
    speed.add_argument("--name", default="", help="write results/NAME/bench.json, too")
    speed.add_argument("--json", action="store_true", help="print JSON instead of tables")
    steps = commands.add_parser("walk", help="one batch at every station from text to loss",
                                epilog="and every flag of the recipe's script")
    steps.add_argument("recipe", choices=("bert", "roberta", "distilbert"))
    steps.add_argument("--run", default="", help="take this finished run's weights")
    steps.add_argument("--teacher", default="", help="of distilbert: a finished run")
    draw = commands.add_parser("pictures", help="draw the lesson's five pictures, by matplotlib")
    draw.add_argument("run", help="a run or Hugging Face folder: the teacher, and the tokenizer")
    draw.add_argument("--out", default="docs", help="the folder for the SVG files [docs]")
    draw.add_argument("--sentence", default="", help="what to mask [a sentence of pydocs]")
    draw.add_argument("--word", default="", help="the word of it that the teacher has to guess")
    args, flags = parser.parse_known_args()
    if flags and args.command != "walk":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")

    if args.command == "prepare":
        from minibert.files.corpus import describe
        vocab_size = args.vocab_size or ModelConfig.preset(pick_preset(args.preset)).vocab_size
        print(describe(args.corpus, args.tokenizer, vocab_size))
    elif args.command == "fill-mask":
        from minibert.tools.fill_mask import fill_mask
        for text in sys.stdin.read().splitlines() if args.text == "-" else [args.text]:
            print(fill_mask(args.runs, text, args.top))
    elif args.command == "finetune":
        from minibert.tasks.finetune import describe, finetune
        given = {name: value for name, value in vars(args).items() if name != "command"}
        print(describe(finetune(given.pop("run"), FinetuneConfig(**given))))
    elif args.command == "classify":
        from minibert.tasks.finetune import classify
        rows = [tuple(args.texts)]
        if args.texts == ["-"]:
            rows = [tuple(line.split("\t")) for line in sys.stdin.read().splitlines()]
        print(classify(args.run, rows))
    elif args.command == "compare":
        from minibert.claims.compare import ROOT, compare
        from minibert.claims.verdicts import verdict_lines, write_report
        given = {name: value for name, value in vars(args).items() if name != "command"}
        results = compare(**given)
        write_report(results, ROOT / "results" / args.name)
        print(f"{verdict_lines(results)}\n\nresults/{args.name}/report.md has more")
    elif args.command == "bench":
        from minibert.claims.verdicts import speed_table
        from minibert.files.run_folder import ROOT, write_json
        from minibert.tools.bench import bench
        given = {name: value for name, value in vars(args).items()
                 if name not in ("command", "name", "json")}
        found = bench(BenchConfig(**given))
        if args.name:
            (ROOT / "results" / args.name).mkdir(parents=True, exist_ok=True)
            write_json(ROOT / "results" / args.name / "bench.json", found)
        print(json.dumps(found, indent=2) if args.json else speed_table(found))
    elif args.command == "walk":
        from minibert.tools.walk import walk
        print(walk(args.recipe, flags, args.run, args.teacher))
    elif args.command == "pictures":
        from minibert.tools.pictures import draw_pictures
        print(draw_pictures(args.run, args.out, args.sentence, args.word))
    elif args.command == "report":
        from minibert.claims.compare import ROOT
        from minibert.claims.verdicts import write_report
        from minibert.tools.table import read_json
        folder = ROOT / "results" / args.name
        write_report(read_json(folder / "results.json", "is missing; make it with compare"), folder)
    else:
        from minibert.tools import table
        print(table.info(args.run) if args.command == "info" else table.family_table(args.runs))


if __name__ == "__main__":
    run_cli(main)
