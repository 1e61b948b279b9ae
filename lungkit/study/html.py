"""A report as one HTML page: it loads nothing but the run's own figures, and reads on a phone and on paper too."""

import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from lungkit import palette
from lungkit.study import layout, pictures
from lungkit.study.document import (
    Block,
    Bullets,
    Cite,
    Document,
    Failure,
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

_CSS_INCH = 96  # pixels of CSS
_TOGETHER = 15  # the most rows of a table that stays on one printed page

_STYLE = f"""
:root {{ --ink: {palette.INK}; --quiet: {palette.QUIET}; --line: {palette.LINE}; --ground: {palette.GROUND};
  --accent: {palette.ACCENT}; --accent-pale: {palette.ACCENT_PALE}; --warn: {palette.WARN};
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", P052, Georgia, "Liberation Serif",
  serif; }}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; color: var(--ink); background: {palette.PAPER}; font: 17px/1.6 var(--serif); }}
.page {{ display: grid; grid-template-columns: 15.5rem minmax(0, 52rem); gap: 0 3.5rem; max-width: 76rem;
  margin: 0 auto; padding: 0 1.5rem; }}
nav {{ position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 3rem 0 2rem;
  font: 14px/1.45 var(--sans); }}
nav ol {{ list-style: none; margin: 0; padding: 0; }}
nav ol ol {{ padding-left: 1rem; margin: 0.1rem 0 0.5rem; }}
nav li {{ margin: 0.3rem 0; }}
nav a {{ color: var(--quiet); text-decoration: none; }}
nav details > ol > li > a {{ color: var(--ink); font-weight: 600; }}
nav a:hover {{ color: var(--accent); text-decoration: underline; }}
nav summary {{ font-weight: 600; cursor: pointer; }}
main {{ padding: 3rem 0 5rem; min-width: 0; }}
h1, h2, h3, h4 {{ font-family: var(--sans); line-height: 1.25; letter-spacing: -0.01em; text-wrap: balance; }}
h1 {{ font-size: 2.1rem; margin: 0; }}
h2 {{ font-size: 1.5rem; margin: 3.2rem 0 0.8rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.15rem; margin: 2.2rem 0 0.5rem; }}
h2 .number, h3 .number {{ color: var(--quiet); font-weight: 400; margin-right: 0.55em; }}
p, ul, .references {{ max-width: 42rem; margin: 0.7rem 0; hanging-punctuation: first; }}
p {{ text-wrap: pretty; overflow-wrap: break-word; }}
li {{ margin: 0.35rem 0; }}
.subtitle {{ color: var(--quiet); font: 15px/1.5 var(--sans); margin: 0.6rem 0 1.6rem; }}
.lead {{ font-size: 1.12rem; line-height: 1.5; padding: 1rem 1.25rem; margin: 1.4rem 0; background: var(--accent-pale);
  border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; max-width: none; }}
.files {{ font: 14px/1.6 var(--sans); max-width: none; }}
a {{ color: var(--accent); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }}
.failed {{ color: var(--warn); font-weight: 600; }}
figure {{ margin: 2rem 0; }}
figure img {{ display: block; max-width: 100%; height: auto; }}
figcaption, .caption {{ font: 14.5px/1.5 var(--sans); text-align: left; }}
figcaption {{ margin-top: 0.6rem; max-width: 46rem; }}
figcaption .label, .caption .label {{ font-weight: 650; }}
.forms {{ color: var(--quiet); white-space: nowrap; }}
.table {{ margin: 1.8rem 0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font: 14.5px/1.45 var(--sans); font-variant-numeric: tabular-nums;
  border-bottom: 1.5px solid var(--ink); }}
.caption {{ margin: 0 0 0.5rem; max-width: 46rem; }}
thead th {{ border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom; }}
th, td {{ padding: 0.32rem 1.3rem 0.32rem 0; text-align: left; vertical-align: top; font-weight: 400; }}
thead th {{ font-weight: 600; }}
th:last-child, td:last-child {{ padding-right: 0; }}
tbody tr + tr > * {{ border-top: 1px solid var(--line); }}
.n {{ text-align: right; }}
.wide {{ min-width: 16rem; overflow-wrap: anywhere; }}
td:not(.wide) {{ white-space: nowrap; }}
.many td {{ white-space: normal; }}
.note {{ font: 13.5px/1.5 var(--sans); color: var(--quiet); margin: 0.5rem 0 0; }}
.references {{ padding-left: 1.9rem; font-size: 0.94rem; overflow-wrap: break-word; }}
.references li::marker {{ color: var(--quiet); }}
:target {{ scroll-margin-top: 1rem; }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px; }}
@media (max-width: 60rem) {{
  .page {{ display: block; padding: 0 1.1rem; }}
  nav {{ position: static; max-height: none; padding: 1.2rem 0 0; }}
  main {{ padding-top: 1.2rem; }}
  h1 {{ font-size: 1.6rem; }}
  body {{ font-size: 16px; }}
  thead th, th, td {{ padding-right: 0.9rem; }}
}}
@media print {{
  @page {{ margin: 18mm 16mm; }}
  body {{ font-size: 10pt; }}
  nav, .forms {{ display: none; }}
  .page, main {{ display: block; padding: 0; max-width: none; }}
  h2, h3 {{ break-after: avoid; }}
  figure, tr, .lead, .table {{ break-inside: avoid; }}
  .long {{ break-inside: auto; }}
  .caption {{ break-after: avoid; }}
  figure img {{ max-height: 108mm; width: auto; }}
  .scroll {{ overflow: visible; }}
  table, figcaption, .caption, .note {{ font-size: 8.5pt; }}
  td:not(.wide) {{ white-space: normal; }}
  .wide {{ min-width: 9rem; }}
  thead {{ display: table-header-group; }}
  a {{ color: inherit; text-decoration: none; }}
}}
"""


def page(document: Document, files: Iterable[Link] = ()) -> str:
    """The page. files: the report's other forms, which are named below the title."""
    links = ", ".join(_link(document, link) for link in files)
    named = f'<p class="files">This report in other forms: {links}.</p>' if links else ""
    sections = "".join(_section(document, one, 2) for one in (*document.sections, *document.appendices))
    contents = _contents(document, (*document.sections, *document.appendices))
    references = _references(document)
    also = '<li><a href="#references">References</a></li>' if references else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="lungkit">
<title>{_escaped(document.title)} – {_escaped(document.subtitle)}</title>
<style>{_STYLE}</style>
</head>
<body>
<div class="page">
<nav aria-label="Contents"><details open><summary>Contents</summary><ol>{contents}{also}</ol></details></nav>
<main>
<h1>{_escaped(document.title)}</h1>
<p class="subtitle">{_escaped(document.subtitle)}</p>
{named}
{sections}
{references}
</main>
</div>
<script>if (matchMedia("(max-width: 60rem)").matches) document.querySelector("nav details").open = false;</script>
</body>
</html>
"""


def _contents(document: Document, sections: Iterable[Section]) -> str:
    rows = []
    for one in sections:
        below = _contents(document, one.parts)
        title = f'<a href="#{_id("section", one.name)}">{_escaped(one.title)}</a>'
        rows.append(f"<li>{title}<ol>{below}</ol></li>" if below else f"<li>{title}</li>")
    return "".join(rows)


def _section(document: Document, section: Section, level: int) -> str:
    number = document.labels[Ref("section", section.name)].removeprefix("Section ")
    heading = (
        f'<h{level} id="{_id("section", section.name)}"><span class="number">{number}</span>'
        f"{_escaped(section.title)}</h{level}>"
    )
    blocks = "\n".join(_block(document, block) for block in section.blocks)
    parts = "".join(_section(document, part, level + 1) for part in section.parts)
    return f"<section>\n{heading}\n{blocks}\n{parts}</section>\n"


def _block(document: Document, block: Block) -> str:
    match block:
        case Paragraph():
            kind = ' class="lead"' if block.lead else ""
            return f"<p{kind}>{_text(document, block.text)}</p>"
        case Bullets():
            return f"<ul>{''.join(f'<li>{_text(document, item)}</li>' for item in block.items)}</ul>"
        case Figure():
            return _figure(document, block)
    return _table(document, block)


def _figure(document: Document, figure: Figure) -> str:
    label, caption = document.labels[Ref("figure", figure.name)], _escaped(sentence(figure.caption))
    forms = [figure.stem.with_name(f"{figure.stem.name}.{form}") for form in ("svg", "pdf")]
    linked = [f'<a href="{_target(document, file)}">{file.suffix[1:].upper()}</a>' for file in forms if file.is_file()]
    there = f' <span class="forms">{", ".join(linked)}</span>' if linked else ""
    return (
        f'<figure id="{_id("figure", figure.name)}">{_picture(document, figure, caption)}'
        f'<figcaption><span class="label">{label}.</span> {caption}{there}</figcaption></figure>'
    )


def _picture(document: Document, figure: Figure, caption: str) -> str:
    """The picture at the size that it was made for, or why there is none."""
    if (shown := pictures.png(figure)) is None:
        return f'<p class="failed">{_escaped(pictures.missing(figure))}</p>'
    width, height = round(shown.width * _CSS_INCH), round(shown.height * _CSS_INCH)
    target = _target(document, shown.file)
    return f'<img src="{target}" alt="{caption}" width="{width}" height="{height}" loading="lazy">'


def _table(document: Document, table: Table) -> str:
    label = document.labels[Ref("table", table.name)]
    file = f' <span class="forms"><a href="{_target(document, table.file)}">CSV</a></span>' if table.file else ""
    kinds = ["n" if layout.is_number(document, table, place) else "wide" if place in table.wide else ""
             for place in range(len(table.head))]  # fmt: skip
    classes = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(
        f'<th scope="col"{kind}>{_escaped(name)}</th>' for name, kind in zip(table.head, classes, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(document, *cell) for cell in zip(row, kinds, strict=True))}</tr>\n" for row in table.rows
    )
    note = f'<p class="note">{_escaped(table.note)}</p>' if table.note else ""
    many = ' class="many"' if len(table.head) > 5 else ""
    name, long = _id("table", table.name), " long" if len(table.rows) > _TOGETHER else ""
    return (
        f'<div class="table{long}" id="{name}"><p class="caption" id="caption-{name}">'
        f'<span class="label">{label}.</span> {_escaped(sentence(table.caption))}{file}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="caption-{name}"><table{many}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>{note}</div>"
    )


def _cell(document: Document, cell: Text, kind: str) -> str:
    if len(cell) == 1 and isinstance(cell[0], Failure):
        return f'<td class="failed">{_escaped(cell[0].text)}</td>'
    shown = f' class="{kind}"' if kind else ""
    return f"<td{shown}>{_text(document, cell)}</td>"


def _text(document: Document, text: Text) -> str:
    return "".join(_inline(document, one) for one in text)


def _inline(document: Document, inline: Inline) -> str:
    match inline:
        case str():
            return _escaped(inline)
        case Cite():
            return f'&nbsp;<a href="#{_id("reference", inline.key)}">[{document.number(inline)}]</a>'
        case Ref():
            return f'<a href="#{_id(inline.kind, inline.name)}">{document.labels[inline]}</a>'
        case Link():
            return _link(document, inline)
        case Strong():
            return f"<strong>{_escaped(inline.text)}</strong>"
    return f'<span class="failed">{_escaped(inline.text)}</span>'


def _link(document: Document, link: Link) -> str:
    outside = link.target.startswith(("https://", "http://"))
    target = _escaped(link.target) if outside else _target(document, document.folder / link.target)
    return f'<a href="{target}">{_escaped(link.text)}</a>'


def _references(document: Document) -> str:
    rows = []
    for key in document.cited:
        one = REFERENCES[key]
        link = f' <a href="{_escaped(one.link)}">{_escaped(one.link)}</a>' if one.link else ""
        rows.append(f'<li id="{_id("reference", key)}">{_escaped(one.text)}{link}</li>')
    return f'<h2 id="references">References</h2><ol class="references">{"".join(rows)}</ol>' if rows else ""


def _target(document: Document, file: Path) -> str:
    """A file's address, relative to the run's folder."""
    return quote(Path(os.path.relpath(file, document.folder)).as_posix())


def _id(kind: str, name: str) -> str:
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}"


def _escaped(text: str) -> str:
    return html.escape(text)
