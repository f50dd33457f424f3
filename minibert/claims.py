"""The lineage's claims as one table: the arms of each, the measure, and the margin.

Written before any run. An arm is a script and the flags that one would type; two arms of a
contrast differ in what the claim is about and in nothing else. Arms are shared between claims.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train; what it does not say is the grid's."""
    name: str
    script: str = "train_roberta"
    flags: str = ""
    budget: float = 1.0  # tokens that are no padding, in units of the grid's
    teacher: "Arm | None" = None


@dataclass(frozen=True)
class Contrast:
    """Is the first arm better than the second, or no worse, by more than a margin?"""
    first: Arm
    second: Arm
    question: str  # "better" or "no worse"
    margin: float = 0.05  # in units of the measure; smaller effects are not worth a name
    measure: str = "full-sentences.mlm_loss"  # in metrics.json; less is better
    apart: str = ""  # "tokens", where the budget is what differs


@dataclass(frozen=True)
class Claim:
    """What is claimed, the contrasts that test it (the first decides), and what was published."""
    id: str
    says: str
    contrasts: tuple[Contrast, ...]
    published: str
    besides: tuple[Arm, ...] = ()  # reference lines, in the report but in no contrast


@dataclass(frozen=True)
class Grid:
    """The sizes of a preset's runs. layers: of students and of all arms without a teacher's."""
    layers: int
    teacher_layers: int
    tokens: int
    flags: str = ""


GRIDS = {
    "tiny": Grid(layers=2, teacher_layers=4, tokens=1_200_000,
                 flags="--batch-size 32 --eval-every 1000000"),
    "small": Grid(layers=6, teacher_layers=12, tokens=60_000_000),
}

PAIRS_LOSS = "segment-pair.mlm_loss"
BASE = Arm("full sentences")
# RoBERTa's recipe otherwise, so that the pairs are what differs.
_PAIRS = "--masking dynamic --adam-beta2 0.98 --max-grad-norm 0"
WITH_NSP = Arm("pairs, NSP", "train_bert", _PAIRS)
WITHOUT_NSP = Arm("pairs, no NSP", "train_bert", f"{_PAIRS} --no-nsp")
DOCUMENTS = Arm("document sentences", flags="--input-format doc-sentences")

# A twentieth of the text, so that the same few sequences come again and again.
_SLICE = "--data-fraction 0.05 --eval-every 250"
STATIC_1 = Arm("static x1", flags=f"{_SLICE} --masking static --static-masks 1")
STATIC_10 = Arm("static x10", flags=f"{_SLICE} --masking static --static-masks 10")
DYNAMIC = Arm("dynamic", flags=_SLICE)

SIXTEENTH = Arm("1/16 of the text", flags="--data-fraction 0.0625")
QUARTER = Arm("1/4 of the text", flags="--data-fraction 0.25")
HALF = Arm("1x", budget=0.5)  # BASE is 2x
DOUBLE = Arm("4x", budget=2.0)

# The whole family in the depth of the teacher, each by its script's defaults.
ROBERTA = Arm("roberta", flags="--num-hidden-layers {teacher_layers}", budget=2.0)
BERT = Arm("bert", "train_bert", "--num-hidden-layers {teacher_layers}", 2.0)
BERT_TENTH = Arm("bert, 1/10 of the text", "train_bert",
                 "--num-hidden-layers {teacher_layers} --data-fraction 0.1", 2.0)
_SHORT = 0.4  # a student's budget
DISTILROBERTA = Arm("distilroberta", "distill", "", _SHORT, ROBERTA)
DISTILBERT = Arm("distilbert", "distill", "", _SHORT, BERT_TENTH)

_RANDOM, _HARD = "--init random --alpha-cos 0", "--alpha-kl 0 --alpha-cos 0"
SOFT = Arm("soft, random", "distill", _RANDOM, _SHORT, ROBERTA)
HARD = Arm("hard, random", "distill", f"--init random {_HARD}", _SHORT, ROBERTA)
HARD_LAYERS = Arm("hard, teacher's layers", "distill", _HARD, _SHORT, ROBERTA)
# A forward pass of a teacher of twice the depth, beside forward and backward of the student:
# 1 + 2/3 of its arithmetic. In arithmetic, not in seconds, so that a rerun has the same steps.
HARD_LONGER = Arm("hard, random, longer", "distill", f"--init random {_HARD}", _SHORT * 5 / 3,
                  ROBERTA)
TRAINED_ON = Arm("roberta, trained on", "distill",
                 _HARD + " --student-layers {teacher_layers}", _SHORT, ROBERTA)
SOFT_3 = Arm("soft, 3 % of the text", "distill", f"{_RANDOM} --alpha-mlm 0 --data-fraction 0.03",
             _SHORT, ROBERTA)
HARD_3 = Arm("hard, 3 % of the text", "distill", f"--init random {_HARD} --data-fraction 0.03",
             _SHORT, ROBERTA)

CLAIMS = (
    Claim("nsp", "dropping NSP loses nothing", (
        Contrast(WITHOUT_NSP, WITH_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(BASE, WITH_NSP, "no worse"),
        Contrast(BASE, WITH_NSP, "no worse", measure=PAIRS_LOSS),
        Contrast(DOCUMENTS, BASE, "no worse")),
        "RoBERTa Table 2, full sentences over pairs with NSP: +0.4 SQuAD 2.0, +0.7 MNLI, -0.4 "
        "SST-2"),
    Claim("masking", "static masks are wasteful, dynamic ones are not", (
        Contrast(DYNAMIC, STATIC_1, "better"), Contrast(DYNAMIC, STATIC_10, "better")),
        "RoBERTa Table 1, ten static masks against dynamic: +0.4 SQuAD 2.0, -0.3 MNLI, +0.4 SST-2"),
    Claim("data", "BERT was undertrained: more text helps", (
        Contrast(BASE, SIXTEENTH, "better"), Contrast(BASE, QUARTER, "better")),
        "RoBERTa Table 4, ten times the text: +0.3 MNLI, +0.3 SST-2, large model"),
    Claim("steps", "and longer training helps", (
        Contrast(BASE, HALF, "better", apart="tokens"),
        Contrast(DOUBLE, BASE, "better", apart="tokens")),
        "RoBERTa Table 4, five times the steps: +0.9 MNLI, +0.8 SST-2, large model"),
    Claim("distill", "soft targets beat the same student without a teacher", (
        Contrast(SOFT, HARD, "better"), Contrast(DISTILROBERTA, HARD, "better"),
        Contrast(SOFT, HARD_LONGER, "better", apart="tokens"),
        Contrast(DISTILROBERTA, HARD_LAYERS, "better"),
        Contrast(HARD_LAYERS, HARD, "better")),
        "DistilBERT Table 4: -2.96 GLUE without soft targets, -3.69 from random weights",
        (TRAINED_ON, ROBERTA)),
    Claim("soft", "soft targets contain almost all the knowledge", (
        Contrast(SOFT_3, HARD_3, "better"), Contrast(SOFT_3, HARD, "no worse")),
        "Hinton et al., speech, 3 % of the data: 44.5 % hard, 57.0 % soft; 58.9 % hard on all"),
    Claim("stack", "RoBERTa and DistilBERT are no rivals: they stack", (
        Contrast(DISTILROBERTA, DISTILBERT, "better"), Contrast(ROBERTA, BERT_TENTH, "better"),
        Contrast(ROBERTA, BERT, "better")),
        "GLUE: BERT 79.5, DistilBERT 77.0; RoBERTa 83.2, DistilRoBERTa 79.0", (BERT,)),
)
