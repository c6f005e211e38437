"""The instruments of the documents example: real programs read, translate, speak and hear; nothing is canned.

Two models of spoken language, a *listener* and a quicker *skimmer*, are built in the worker process before it serves: from a
phrase book they take the words and pairs of words that pocketsphinx has to expect.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import tempfile
import wave
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from conductor.instruments import CallError, Job, Result

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
RATE = 16_000  # samples a second that the decoder wants
CONFIDENCE = 92.0  # of 100: a page that is read with less is cleaned and read again


class Page(NamedTuple):
    """What stands on a page, and what a person says it means; only `score` may look at that."""

    spanish: tuple[str, ...]
    english: str


PAGES = {
    "letter": Page(
        ("La casa grande está cerca del río.", "Mi hermano trabaja en una escuela pequeña."),
        "the big house is near the river my brother works in a small school",
    ),
    "notice": Page(
        ("La biblioteca está cerrada los domingos.", "Los niños pueden entrar por la puerta verde."),
        "the library is closed on sundays the children can come in by the green door",
    ),
    "list": Page(
        ("Necesitamos agua, pan y leche para la semana.", "El tren sale a las ocho de la mañana."),
        "we need water bread and milk for the week the train leaves at eight in the morning",
    ),
}


# --------------------------------------------------------------------------- models
class Listener:
    """A decoder that expects the words of a phrase book, in pairs as they stand there."""

    def __init__(self, **options: Any) -> None:
        """`options`: of the decoder, on top of its defaults."""
        import pocketsphinx

        acoustic = Path(pocketsphinx.__file__).parent / "model" / "en-us"
        phrases = [line.split() for line in Path(__file__).with_name("phrases.txt").read_text().splitlines()]
        words = {word for phrase in phrases for word in phrase}
        with tempfile.TemporaryDirectory() as folder:
            spoken, expected = Path(folder, "words.dict"), Path(folder, "words.arpa")
            lines = (acoustic / "cmudict-en-us.dict").read_text().splitlines()
            spoken.write_text("".join(f"{line}\n" for line in lines if line.split(" ", 1)[0].split("(")[0] in words))
            expected.write_text(_pairs(phrases))
            sources = {"hmm": str(acoustic / "en-us"), "dict": str(spoken), "lm": str(expected)}
            self._decoder = pocketsphinx.Decoder(samprate=float(RATE), loglevel="FATAL", **sources, **options)

    def hear(self, path: Path) -> str:
        """The words in a sound file; empty if none were understood."""
        with wave.open(str(path)) as file:
            sound, rate = np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()
        times = np.arange(len(sound) * RATE // rate) * (rate / RATE)
        samples = np.interp(times, np.arange(len(sound)), sound).astype("<i2").tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


def _pairs(phrases: list[list[str]]) -> str:
    """Words and pairs of words with their probabilities, as an ARPA file; half of each is kept for what was never seen."""
    lines = [["<s>", *phrase, "</s>"] for phrase in phrases]
    ones = Counter(word for line in lines for word in line)
    twos = Counter(pair for line in lines for pair in pairwise(line))
    total = sum(ones.values())
    text = ["", "\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(twos)}", "", "\\1-grams:"]
    text += [f"{math.log10(0.5 * count / total):.4f} {word} {math.log10(0.5):.4f}" for word, count in sorted(ones.items())]
    text += ["", "\\2-grams:"]
    text += [f"{math.log10(0.5 * count / ones[a]):.4f} {a} {b}" for (a, b), count in sorted(twos.items())]
    return "\n".join([*text, "", "\\end\\", ""])


def load_listener() -> Listener:
    """Every frame of the sound, three passes."""
    return Listener()


def load_skimmer() -> Listener:
    """Every second frame, one pass: less than half of the time, and less is understood."""
    return Listener(ds=2, topn=2, maxhmmpf=2000, fwdflat=False, bestpath=False)


# --------------------------------------------------------------------------- the functions of the workflow
def photograph(job: Job) -> Any:
    """A picture of the page, with the grain of a camera; lite from further away."""
    size, grain = (13, 30.0) if job.variant == "lite" else (24, 45.0)
    lines = PAGES[job.args["page"]].spanish
    picture = Image.new("L", (size * 30, size * (2 * len(lines) + 1)), 255)
    font = ImageFont.truetype(str(FONT), size)
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((size, size * (0.5 + 2 * i)), line, font=font, fill=0)
    grains = np.random.default_rng(list(job.args["page"].encode())).normal(0, grain, np.shape(picture))
    noisy = np.clip(np.asarray(picture, float) + grains, 0, 255).astype(np.uint8)
    path = job.folder / f"{job.args['page']}.png"
    _replace(path, lambda scratch: Image.fromarray(noisy).save(scratch, "PNG"))
    return {"file": path.name}


def read(job: Job) -> Any:
    """The text on the picture (lite: by a reader of English). A page that is hard to read fails and is cleaned before the
    next attempt: a note beside it says so, for an attempt that was merely lost has found nothing out."""
    (taken,) = job.inputs.values()
    hard = job.folder / f"{taken['file']}.hard"
    cleaned = hard.exists()
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder, "page.png")
        picture = Image.open(job.folder / taken["file"])
        if cleaned:
            picture = picture.resize((picture.width * 2, picture.height * 2)).filter(ImageFilter.GaussianBlur(2.0))
        picture.save(clean)
        language = "eng" if job.variant == "lite" else "spa"
        command = ["tesseract", str(clean), "stdout", "-l", language, "--psm", "6", "tsv"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CallError(f"tesseract ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    words = [(row[-1], float(row[-2])) for row in rows if row[-1].strip() and float(row[-2]) >= 0]
    confidence = statistics.fmean(sure for _, sure in words) if words else 0.0
    if confidence < CONFIDENCE and not cleaned:
        hard.touch()
        raise CallError(f"the page is hard to read: confidence {confidence:.0f} of 100")
    if not words:
        raise CallError("there is nothing to read on the page")
    return " ".join(word for word, _ in words)


def listen(job: Job) -> Any:
    """What is understood of a spoken text."""
    heard = job.model.hear(job.folder / f"{job.args['page']}.wav")
    if not heard:
        raise CallError("nothing was understood")
    return {"page": job.args["page"], "heard": heard}


def score(job: Job) -> Any:
    """Word error rate between what was understood in the end and what the page means; the quality is what is left of 1."""
    (heard,) = job.inputs.values()
    page = PAGES[heard["page"]]
    rate = word_error_rate(page.english.split(), re.findall(r"[a-z']+", heard["heard"].lower()))
    return Result({**heard, "meant": page.english, "word_error_rate": round(rate, 4)}, quality=max(0.0, 1.0 - rate))


def report(job: Job) -> Any:
    """Write `report.md`; the quality is the mean of the pages'."""
    rows = sorted(job.inputs.values(), key=lambda row: row["page"])
    lines = ["# Documents", "", "| page | meant | understood | word error rate |", "|---|---|---|---|"]
    lines += [f"| {row['page']} | {row['meant']} | {row['heard']} | {row['word_error_rate']:.2f} |" for row in rows]
    mean = statistics.fmean(max(0.0, 1.0 - row["word_error_rate"]) for row in rows)
    text = "\n".join([*lines, "", f"Mean share of words right: {mean:.4f}", ""])
    _replace(job.folder / "report.md", lambda scratch: scratch.write_text(text))
    rates = {row["page"]: row["word_error_rate"] for row in rows}
    return Result({"file": "report.md", "mean": mean, "word_error_rates": rates}, quality=mean)


def word_error_rate(meant: list[str], heard: list[str]) -> float:
    """Words to insert, delete or replace, over the words that were meant (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(meant, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1] / len(meant)


def _replace(path: Path, write: Any) -> None:
    """The file appears whole or not at all."""
    scratch = path.with_suffix(".part")
    write(scratch)
    scratch.replace(path)
