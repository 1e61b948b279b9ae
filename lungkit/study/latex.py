r"""A report as LaTeX that pdflatex compiles as it is: article class, booktabs, figures as PDF, its own bibliography.

Text is escaped letter by letter. A letter that pdflatex has no font for is written as its code point ("U+80BA"), which
no reader can take for the letter, and no compiler stops at.
"""

import os
import re
import unicodedata
from pathlib import Path

from lungkit import files
from lungkit.study import layout, pictures
from lungkit.study.document import (
    Block,
    Bullets,
    Cite,
    Document,
    Figure,
    Inline,
    Link,
    Paragraph,
    Ref,
    Section,
    Strong,
    Table,
    Text,
    sentence,
)
from lungkit.study.references import REFERENCES

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\u00ad": r"\-", "\u200b": r"\allowbreak{}", "\ufeff": "",
    "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}", "•": r"\textbullet{}",
    "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "÷": r"\ensuremath{\div}",
    "±": r"\ensuremath{\pm}", "≤": r"\ensuremath{\leq}", "≥": r"\ensuremath{\geq}", "≠": r"\ensuremath{\neq}",
    "≈": r"\ensuremath{\approx}", "∼": r"\ensuremath{\sim}", "∞": r"\ensuremath{\infty}", "√": r"\ensuremath{\surd}",
    "∑": r"\ensuremath{\sum}", "∆": r"\ensuremath{\Delta}", "∈": r"\ensuremath{\in}", "°": r"\textdegree{}",
    "→": r"\ensuremath{\rightarrow}", "←": r"\ensuremath{\leftarrow}", "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}", "↔": r"\ensuremath{\leftrightarrow}", "⇒": r"\ensuremath{\Rightarrow}",
    "✓": r"\ensuremath{\surd}", "✗": r"\ensuremath{\times}", "★": r"\ensuremath{\star}", "☆": r"\ensuremath{\star}",
    "²": r"\ensuremath{^2}", "³": r"\ensuremath{^3}", "¹": r"\ensuremath{^1}", "½": r"\ensuremath{1/2}",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "¬": r"\ensuremath{\neg}", "′": r"\ensuremath{'}",
    "″": r"\ensuremath{''}", "¼": r"\ensuremath{1/4}", "¾": r"\ensuremath{3/4}", "‑": "-", "‚": r"\quotesinglbase{}",
    "„": r"\quotedblbase{}", "‹": r"\guilsinglleft{}", "›": r"\guilsinglright{}", "⁻": r"\ensuremath{^-}",
    "©": r"\textcopyright{}", "®": r"\textregistered{}", "™": r"\texttrademark{}", "§": r"\S{}", "¶": r"\P{}",
    "€": r"\texteuro{}", "£": r"\textsterling{}", "µ": r"\ensuremath{\mu}", "ª": r"\textordfeminine{}",
    "º": r"\textordmasculine{}", "¡": r"\textexclamdown{}", "¿": r"\textquestiondown{}", "«": r"\guillemotleft{}",
    "»": r"\guillemotright{}", "‰": r"\textperthousand{}", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}",
    "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "œ": r"\oe{}", "Œ": r"\OE{}", "đ": r"\dj{}",
    "Đ": r"\DJ{}", "ð": r"\dh{}", "Ð": r"\DH{}", "þ": r"\th{}", "Þ": r"\TH{}", "ı": r"\i{}", "ŋ": r"\ng{}",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "ς": "varsigma", "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SAME = dict(zip("οΑΒΕΖΗΙΚΜΝΟΡΤΧ", "oABEZHIKMNOPTX", strict=True))  # Greek letters that look like Latin ones
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0328": "k",
}  # fmt: skip

_HEAD = r"""\documentclass[11pt,a4paper]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern,textcomp}
\usepackage[margin=25mm]{geometry}
\usepackage{graphicx,booktabs,longtable,array,caption,float,microtype}
\usepackage[hidelinks]{hyperref}
\captionsetup{labelfont=bf,labelsep=period,justification=raggedright,singlelinecheck=false,font=small}
\newcolumntype{L}[1]{>{\raggedright\arraybackslash\hspace{0pt}}p{#1}}
\setlength{\LTcapwidth}{\textwidth}\setlength{\LTleft}{0pt}\setlength{\tabcolsep}{5pt}
\renewcommand{\arraystretch}{1.15}\setlength{\parskip}{.4em}\setlength{\parindent}{0pt}
\emergencystretch=3em
"""
_LETTERS = 88  # of a table's type that fit the width of the text
_LONG = re.compile(r"[^\s\u200b]{25,}")  # words, such as hashes, that may break


def write(document: Document, folder: Path, name: str = "report") -> Path:
    """Write <folder>/<name>.tex; figures are taken from where they are, relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.tex"
    files.replace(file, text(document, folder))
    return file


def text(document: Document, folder: Path) -> str:
    """The LaTeX source of a document that will lie in `folder`."""
    title = (
        f"\\hypersetup{{pdftitle={{{escaped(document.title)}}}}}\n\\title{{{escaped(document.title)}}}\n"
        f"\\author{{}}\n\\date{{{escaped(document.subtitle)}}}\n"
    )
    body = "".join(_section(document, one, folder) for one in document.sections)
    appendices = "".join(_section(document, one, folder) for one in document.appendices)
    after = f"\\clearpage\n\\appendix\n{appendices}" if appendices else ""
    front = f"{_HEAD}{title}\\begin{{document}}\n\\maketitle\n"
    return f"{front}{body}\\clearpage\n{_references(document)}{after}\\end{{document}}\n"


def escaped(words: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(map(_letter, unicodedata.normalize("NFC", words)))


def _letter(one: str) -> str:
    if one in _SPECIAL:
        return _SPECIAL[one]
    if one in _GREEK:
        return rf"\ensuremath{{\{_GREEK[one]}}}"
    if one in _SAME:
        return _SAME[one]
    if one.isascii():
        return one if one.isprintable() else " "
    base, *marks = list(unicodedata.normalize("NFD", one))
    if marks and base.isascii() and base.isalpha() and set(marks) <= set(_ACCENTS):
        for mark in marks:
            base = rf"\{_ACCENTS[mark]}{{{base}}}"
        return base
    return rf"{{\footnotesize\sffamily U+{ord(one):04X}}}"


def _section(document: Document, section: Section, folder: Path, level: int = 0) -> str:
    kind = ("section", "subsection", "subsubsection")[min(level, 2)]
    title = f"\\{kind}{{{escaped(section.title)}}}\\label{{{_label('section', section.name)}}}\n"
    blocks = "\n".join(_block(document, block, folder) for block in section.blocks)
    return f"{title}{blocks}\n" + "".join(_section(document, part, folder, level + 1) for part in section.parts)


def _block(document: Document, block: Block, folder: Path) -> str:
    match block:
        case Paragraph():
            words = _text(document, block.text)
            return f"\\textbf{{{words}}}\n" if block.lead else f"{words}\n"
        case Bullets():
            items = "".join(f"\\item {{}}{_text(document, item)}\n" for item in block.items)
            return f"\\begin{{itemize}}\n{items}\\end{{itemize}}\n"
        case Figure():
            return _figure(block, folder)
    return _table(document, block)


def _figure(figure: Figure, folder: Path) -> str:
    file = _picture(figure, folder)
    shown = (
        f"\\includegraphics[width=\\linewidth,height=.42\\textheight,keepaspectratio]{{{file}}}"
        if file
        else f"\\emph{{{escaped(pictures.missing(figure))}}}"
    )
    caption = f"\\caption{{{escaped(sentence(figure.caption))}}}\\label{{{_label('figure', figure.name)}}}"
    return f"\\begin{{figure}}[H]\n\\centering\n{shown}\n{caption}\n\\end{{figure}}\n"


def _picture(figure: Figure, folder: Path) -> str:
    """The figure's PDF or PNG relative to `folder`; a copy in `folder` where LaTeX could not read its name."""
    file = pictures.pdf(figure)
    if file is None and (shown := pictures.png(figure)):
        file = shown.file
    if file is None:
        return ""
    path = Path(os.path.relpath(file, folder)).as_posix()
    if re.fullmatch(r"[A-Za-z0-9_./-]+", path) and "." not in file.stem:
        return path
    copy = re.sub(r"[^A-Za-z0-9_-]", lambda letter: f"-{ord(letter[0]):x}-", file.stem)
    files.replace(folder / f"{copy}{file.suffix}", file.read_bytes())
    return f"{copy}{file.suffix}"


# --- tables


def _table(document: Document, table: Table) -> str:
    columns = _columns(document, table)
    head = " & ".join(f"\\textbf{{{escaped(name)}}}" for name in table.head)
    rows = "".join(f"{_row(document, row)} \\\\\n" for row in table.rows)
    caption = f"\\caption{{{escaped(sentence(table.caption))}}}\\label{{{_label('table', table.name)}}}"
    note = f"\n\n{{\\footnotesize {escaped(table.note)}}}\n" if table.note else ""
    top = f"\\toprule\n{head} \\\\\n\\midrule\n"
    if len(table.rows) > _ONE_PAGE or "L{" in columns:
        begin = f"{{\\footnotesize\n\\begin{{longtable}}{{@{{}}{columns}@{{}}}}\n"
        heads = f"{caption} \\\\\n{top}\\endfirsthead\n{top}\\endhead\n"
        return f"{begin}{heads}{rows}\\bottomrule\n\\end{{longtable}}}}{note}\n"
    begin = f"\\begin{{table}}[H]\n\\footnotesize\n{caption}\n\\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n"
    return f"{begin}{top}{rows}\\bottomrule\n\\end{{tabular}}{note}\n\\end{{table}}\n"


def _row(document: Document, row: tuple[Text, ...]) -> str:
    """A row's cells; "[" at its begin would belong to the end of the row before."""
    cells = " & ".join(_text(document, cell) for cell in row)
    return f"{{}}{cells}" if cells.startswith(("[", "*")) else cells


_ONE_PAGE = 25  # rows of a table that does not break


def _columns(document: Document, table: Table) -> str:
    """The column types: as wide as their text where all fit the page, else shares of its width."""
    if layout.fits(document, table, _LETTERS):
        return "".join("r" if layout.is_number(document, table, at) else "l" for at in range(len(table.head)))
    shares = (width / _LETTERS for width in layout.widths(document, table, _LETTERS))
    return "".join(f"L{{{share:.3f}\\linewidth}}" for share in shares)


# --- text


def _text(document: Document, words: Text) -> str:
    return "".join(_inline(document, one) for one in words)


def _inline(document: Document, inline: Inline) -> str:
    match inline:
        case str():
            return escaped(_LONG.sub(lambda word: "\u200b".join(re.findall(".{1,6}", word[0])), inline))
        case Cite():
            return f"~\\cite{{{inline.key}}}"
        case Ref():
            kind = document.labels[inline].partition(" ")[0]
            return f"{kind}~\\ref{{{_label(inline.kind, inline.name)}}}"
        case Link():
            address = inline.target.startswith(("https://", "http://"))
            return f"\\href{{{_address(inline.target)}}}{{{escaped(inline.text)}}}" if address else escaped(inline.text)
        case Strong():
            return f"\\textbf{{{escaped(inline.text)}}}"
    return f"\\emph{{{escaped(inline.text)}}}"


def _address(link: str) -> str:
    return re.sub(r"([%#&_{}~^\\])", r"\\\1", link)


def _references(document: Document) -> str:
    rows = []
    for key in document.cited:
        one = REFERENCES[key]
        link = f" \\href{{{_address(one.link)}}}{{{escaped(one.link)}}}" if one.link else ""
        rows.append(f"\\bibitem{{{key}}} {escaped(one.text)}{link}\n")
    listed = "".join(rows)
    return f"\\begin{{thebibliography}}{{99}}\\small\\raggedright\n{listed}\\end{{thebibliography}}\n" if rows else ""


def _label(kind: str, name: str) -> str:
    return f"{kind}:{re.sub(r'[^A-Za-z0-9-]', '-', name)}"
