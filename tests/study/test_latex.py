"""The report as LaTeX: escaped letter by letter, and compiled by pdflatex without an error."""

import re
import shutil
import string
import subprocess

import pytest

from lungkit.study import latex, report
from lungkit.study.document import Bullets, Document, Paragraph, Section, Table


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("50 % & $5 #1 a_b {c} ~ ^ \\", r"50 \% \& \$5 \#1 a\_b \{c\} \textasciitilde{} \textasciicircum{} "
                                        r"\textbackslash{}"),
        ("≥ ≤ − × → ±", r"\ensuremath{\geq} \ensuremath{\leq} \ensuremath{-} \ensuremath{\times} "
                        r"\ensuremath{\rightarrow} \ensuremath{\pm}"),
        ("0.1–0.2 — …", r"0.1--0.2 --- \ldots{}"),
        ("0.67† 0.9‡ §4 ¶ • …", r"0.67\textdagger{} 0.9\textdaggerdbl{} \S{}4 \P{} \textbullet{} \ldots{}"),
        ("α Ω µ", r"\ensuremath{\alpha} \ensuremath{\Omega} \ensuremath{\mu}"),
        ("Müller Łódź", r'M\"{u}ller \L{}\'{o}d\'{z}'),
        ("e\u0301 ế", r"\'{e} \'{\^{e}}"),
        ("肺 Ж", r"{\footnotesize\sffamily U+80BA} {\footnotesize\sffamily U+0416}"),
        ("a\tb\nc\x00d", "a b c d"),
    ],
)  # fmt: skip
def test_text_is_escaped(text, source):
    assert latex.escaped(text) == source


def test_a_command_in_a_text_stays_text():
    assert latex.escaped(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"


def _compiled(folder, name="report") -> str:
    """The text of the PDF that pdflatex makes; its log says neither an error nor an undefined reference."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    for _ in range(2):
        made = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
            cwd=folder, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        assert made.returncode == 0, made.stdout[-2000:]
    assert not re.search(r"undefined|multiply defined|Missing character", made.stdout)
    from pypdf import PdfReader

    return " ".join(page.extract_text() for page in PdfReader(folder / f"{name}.pdf").pages)


# About 3 s: pdflatex runs twice.
def test_a_report_compiles_and_has_its_numbers_and_figures(run):
    report.write(run, ["latex"])
    text = _compiled(run / "report")
    for words in ("Figure 3", "U+80BA", "References", "TRIPOD", "Operating points"):
        assert words in text, words
    source = (run / "report" / "report.tex").read_text("utf-8")
    assert source.count(r"\includegraphics") == 3
    assert "../figures/04_roc.pdf" in source
    assert (run / "report" / "04_odd-20--23-1.pdf").is_file(), "a copy, as LaTeX cannot read the name"


# About 2 s: pdflatex runs twice.
def test_every_letter_of_a_keyboard_compiles_wherever_a_text_can_be(tmp_path):
    letters = string.printable + "äöüßéñçåøŁžőğş" + "".join(latex._SPECIAL) + "".join(latex._GREEK)
    odd = ("[5] first", "*star", r"\end{document}", "a" * 80, letters)
    rows = tuple(((one,), (one,)) for one in odd)
    blocks = (
        *(Paragraph((one,)) for one in odd),
        Bullets(tuple((one,) for one in odd)),
        Table("t", letters, ("[head]", letters[:60]), rows, note=letters),
        Table("small", "Small", ("[", "*"), ((("[",), ("[1]",)), (("*",), ("1",)))),
    )
    document = Document(letters, letters, "", tmp_path, (Section("s", letters, blocks),))
    latex.write(document, tmp_path)
    assert "[5] first" in _compiled(tmp_path)


def test_a_missing_picture_is_said_and_not_included(run):
    for file in (run / "figures").glob("04_roc.p*"):
        file.unlink()
    report.write(run, ["latex"])
    source = (run / "report" / "report.tex").read_text("utf-8")
    assert source.count(r"\includegraphics") == 2
    assert r"The picture of this figure, 04\_roc, is missing or cannot be read." in source
