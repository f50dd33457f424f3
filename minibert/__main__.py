"""Everything but training the models, which the three scripts do."""
from minibert.config import RUN_PRESETS, ModelConfig, Parser, pick_preset
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
    table = commands.add_parser("table", help="show finished runs side by side")
    table.add_argument("runs", nargs="+", help="run folders")
    blanks = commands.add_parser("fill-mask", help="guess the words for [MASK] in a text")
    blanks.add_argument("runs", nargs="+", help="run folders, to be shown side by side")
    blanks.add_argument("text", help="a text with [MASK] in it")
    blanks.add_argument("--top", type=positive, default=5, help="how many words to show [5]")
    judge = commands.add_parser("classify", help="classify texts with a fine-tuned model")
    judge.add_argument("run", help="a folder that finetune.py made")
    judge.add_argument("texts", nargs="+", help="a text or a pair")
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
    elif command == "classify":
        from minibert.tasks.classifier import classify
        print(classify(args.run, tuple(args.texts)))
    elif command == "walk":
        from minibert.tools.walk import walk
        print(walk(args.recipe, flags, args.run))
    else:
        from minibert.tools.table import family_table
        print(family_table(args.runs))


if __name__ == "__main__":
    run_cli(main)
