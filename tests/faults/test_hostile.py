"""`make faults`: hostile and broken input, made up by `hypothesis` and by hand."""
import dataclasses
import json
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import BUDGET, ROOT, TOY, assert_one_error_line, start_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minibert import ModelConfig, load_pretrained, save_pretrained
from minibert.data import (sentences_of,
                           tokenize)
from minibert.errors import UserError
from minibert.files.corpus import read_documents
from minibert.model import MaskedLM
from minibert.tasks.classifier import SequenceClassifier, load_classifier, save_classifier
from minibert.tasks.tasks import TASKS, read_task
from minibert.tokenizer import train_tokenizer

MANY = settings(max_examples=300, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Byte-level BPE reads every text there is."""
    return train_tokenizer(lambda: [" the red fox", " the fox, red"] * 20, "bpe", 270)


# ---- text

@MANY
@given(documents=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"],
                                                         exclude_characters="\0")), min_size=1),
                          min_size=1, max_size=6))
def test_every_character_survives(documents, byte_tokenizer, tmp_path):
    """Catches characters that are lost or joined between the file and the tokens: what is decoded
    is what was written, right-to-left and combining characters included."""
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join("\n".join(lines) for lines in documents), encoding="utf-8",
                    newline="\n")
    found = [sentences_of(document) for document in read_documents(file)]
    everything = "".join("".join(sentence.split()) for document in found for sentence in document)
    written = file.read_text(encoding="utf-8-sig")  # Python's own idea of lines and of space
    assert everything == "".join(written.split())
    for document in found:
        for sentence in document:
            [(ids, _)] = tokenize(iter([[sentence]]), byte_tokenizer)  # "<mask>" is text to it
            assert byte_tokenizer.decode(ids).lstrip() == sentence.lstrip()


@MANY
@given(content=st.binary(max_size=400))
def test_every_file_is_read_or_refused(content, tmp_path):
    """Catches a traceback for bytes that are no text, in a plain file and in packed ones."""
    for ending in (".txt", ".gz", ".xz"):
        (tmp_path / f"file{ending}").write_bytes(content)
        try:
            assert all(document for document in read_documents(tmp_path / f"file{ending}"))
        except UserError:
            pass


WORDS = "ba be bi bo bu da de di do du ga ge gi go gu la le li lo lu".split()
TEXTS = {
    "NULs": "\x00ba \x00\x00 be\x00bi" * 20,
    "a lone surrogate": b"ba be \xed\xa0\x80 bi",
    "a line of a megabyte": " ".join(WORDS * 20_000),
    "a word of a megabyte": "ba" * 500_000,
    "white space": " \t\u2003\n" * 1000,
    "one word": "ba " * 5000,
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0639\u0631\u0628\u064a \u202eba be\u202c",
    "combining characters": "a" + "\u0301" * 5000 + " e\u0308\u0323 \u1112\u1161\u11ab",
    "one character in many": "".join(chr(0x4e00 + n) for n in range(3000)),
    "line ends of all kinds": "ba\rbe\r\nbi\x0bbo\x0cbu\x85da\u2028de\u2029di",
    "names of special tokens": "[MASK] [PAD] <mask> </s> [CLS] ba",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\ufeff\ufffe\uffff",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 " * 300,
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("name", TEXTS)
def test_training_on_hostile_text(name, alone, toy_text, tmp_path):
    """Catches a traceback, a loss that is no number, or memory without bound: a hostile text alone
    and among good ones is trained on, or refused in one line."""
    content = TEXTS[name] if isinstance(TEXTS[name], bytes) else TEXTS[name].encode()
    good = b"" if alone else toy_text.read_bytes() + b"\n\n"
    (tmp_path / "text.txt").write_bytes(good + b"\n\n".join([content] * 6))
    size = ["--vocab-size", "400", "--tokenizer", "bpe"] if not alone else []
    process = start_script("train_roberta", *BUDGET, *TOY, *size, "--corpus", tmp_path / "text.txt",
                           "--out", tmp_path / "run")
    out, err = process.communicate(timeout=300)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # MB, of all until now
    assert peak < 2000
    if process.returncode:
        assert process.returncode == 2, err
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
    else:
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 12


# ---- folders

@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A run's folder, to be spoiled."""
    path = tmp_path_factory.mktemp("model") / "run"
    config = ModelConfig(vocab_size=270, hidden_size=8, num_hidden_layers=1, intermediate_size=8,
                         num_attention_heads=2, max_position_embeddings=16)
    save_pretrained(MaskedLM(config), byte_tokenizer, path)
    return path


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                   st.lists(st.integers(), max_size=2), st.sampled_from([10**9, 10**12, -1, 0]))


@MANY
@given(change=st.dictionaries(st.sampled_from(
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
     "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "model_type",
     "hidden_dropout_prob", "initializer_range", "pad_token_id", "architectures"]), VALUES,
    min_size=1))
def test_every_config_is_used_or_refused(change, folder, tmp_path):
    """Catches a traceback, a hang or gigabytes for a config.json with absurd values."""
    if not (tmp_path / "run").exists():
        shutil.copytree(folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, **change}))
    try:
        load_pretrained(tmp_path / "run")
    except UserError:
        pass


@MANY
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)),
                                           max_size=3),
       name=st.sampled_from(["pytorch_model.bin", "config.json", "tokenizer.json"]))
def test_every_broken_file_is_used_or_refused(cut, flips, name, folder, tmp_path):
    """Catches a traceback for a file that was cut short or changed on its way."""
    if not (tmp_path / "run").exists():
        shutil.copytree(folder, tmp_path / "run")
    content = bytearray((folder / name).read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    (tmp_path / "run" / name).write_bytes(content[:int(cut * len(content))] if not flips
                                          else content)
    try:
        load_pretrained(tmp_path / "run")
    except UserError:
        pass
    finally:
        shutil.copy(folder / name, tmp_path / "run" / name)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size",
                                   "intermediate_size", "max_position_embeddings"])
@pytest.mark.parametrize("size", [10**6, 10**9, 10**15])
def test_absurd_sizes_take_neither_time_nor_memory(field, size, folder, tmp_path):
    """Catches layers or tables that are built because a file says so: a process with 2 GB."""
    shutil.copytree(folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, field: size}))
    program = ("import resource, sys; from minibert.__main__ import main, run_cli;"
               "resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30,) * 2); run_cli(main)")
    process = subprocess.Popen([sys.executable, "-c", program, "fill-mask",
                                str(tmp_path / "run"), "the [MASK]"], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert_one_error_line(process, "run")


@MANY
@given(change=st.dictionaries(st.sampled_from(
    ["texts", "id2label", "problem_type", "num_hidden_layers", "hidden_size", "vocab_size",
     "model_type"]), VALUES, min_size=1), pooling=st.sampled_from(["mean", "cls"]))
def test_every_classifier_is_used_or_refused(change, pooling, folder, byte_tokenizer, tmp_path):
    """Catches the same in a fine-tuned model's folder."""
    config = dataclasses.replace(load_pretrained(folder)[0].config, next_sentence=False)
    run = tmp_path / pooling
    if not run.exists():
        save_classifier(SequenceClassifier(config, 2, pooling=pooling), byte_tokenizer, run,
                        ["a", "b"], texts=1)
    file = run / ("config.json" if pooling == "cls" else "classifier.json")
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), **change}))
    try:
        load_classifier(str(run))
    except UserError:
        pass
    finally:
        file.write_text(whole)


# ---- tasks

@MANY
@given(content=st.text(st.sampled_from("ab\t\"'\n\r,\x00\u2028 "), max_size=200))
def test_every_table_is_read_or_refused(content, tmp_path):
    """Catches quotes that swallow tabs, rows of other lengths, and cells in the wrong column."""
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\n" + content, encoding="utf-8", newline="")
    try:
        texts, labels = read_task(path, TASKS["text"])
    except UserError:
        return
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [row for row in lines if row.strip()]
    assert [[text[0], label] for text, label in zip(texts, labels)] == [
        row.split("\t") for row in rows]
