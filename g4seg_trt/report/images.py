"""The images of a report as HTML: the worst and the best, and the table of all that are shown."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from g4seg_trt.overlay import class_colour
from g4seg_trt.report.html import NONE, escaped, percent, points
from g4seg_trt.report.pictures import BETTER, OTHER, WORSE, Pictures
from g4seg_trt.report.rows import ReportRows, ShownRow

_MOST_CLASSES = 24
_MOST_WARNINGS = 3
_STRIP = 4

# Columns of figures: key of the data-* attribute, heading, whether only measured rows have it.
_COLUMNS = (
    ("before", "IoU before", True),
    ("after", "IoU after", True),
    ("gain", "Gain", True),
    ("changed", "Changed", False),
    ("seconds", "Seconds", False),
)


def image_sections(rows: ReportRows) -> Iterator[str]:
    """The parts of the page that show images."""
    shown = rows.shown()
    if sum(one.pictures is not None for one in shown) > 2 * _STRIP:
        yield from _strips(shown, rows.measured)
    yield from _table(shown, rows)


def _strips(shown: list[ShownRow], measured: bool) -> Iterator[str]:
    """The first and the last few with pictures, for whoever does not scroll."""
    pictured = [one for one in shown if one.pictures is not None]
    if not measured:
        yield from _strip("Most changed", pictured[: 2 * _STRIP])
        return
    pictured = [one for one in pictured if one.row.gain is not None]
    yield from _strip("Worst", pictured[:_STRIP])
    yield from _strip("Best", pictured[: -_STRIP - 1 : -1])


def _strip(heading: str, shown: list[ShownRow]) -> Iterator[str]:
    yield f'<section><h2>{heading}</h2><div class="strip">'
    for one in shown:
        gain = one.row.gain
        figure = f"{percent(one.row.changed)} changed" if gain is None else f"gain {points(gain)}"
        name = f'<b class="name">{escaped(one.row.stem)}</b>'
        yield f'<div class="card"><p>{name} {figure}</p>{_pictures(one.pictures)}</div>'
    yield "</div></section>"


def _table(shown: list[ShownRow], rows: ReportRows) -> Iterator[str]:
    columns = [
        (key, heading)
        for key, heading, measured in _COLUMNS
        if (rows.measured or not measured) and (key != "seconds" or any(one.row.seconds is not None for one in shown))
    ]
    yield "<section><h2>Images</h2>"
    yield f"<p>{_choice(shown, rows)}</p>{_legend(rows.measured)}"
    if not shown:
        yield "</section>"
        return
    groups = [group for group in ("worst", "best", "most changed") if any(group in one.groups for one in shown)]
    yield _toolbar(columns, groups, rows.measured)
    heads = "".join(
        f'<th scope="col" data-key="{key}"><button type="button">{name}</button></th>' for key, name in columns
    )
    yield (
        '<table id="images"><thead><tr><th scope="col" data-key="name"><button type="button">Image</button></th>'
        f'{heads}<th scope="col">Pictures</th></tr></thead><tbody>\n'
    )
    for one in shown:
        yield _row(one, columns)
    yield "</tbody></table></section>"


def _choice(shown: list[ShownRow], rows: ReportRows) -> str:
    """Which images the table holds, in words."""
    pictures = sum(one.pictures is not None for one in shown)
    if len(shown) == rows.count == pictures:
        return f"All {rows.count:,} images."
    extremes = "the worst, the best" if rows.measured else "those that changed most"
    others = "others drawn evenly by their names"
    if len(shown) == rows.count:
        return f"All {rows.count:,} images; {pictures:,} have pictures: {extremes}, and {others}."
    return f"{len(shown):,} of {rows.count:,} images: {extremes}, and {others}; {pictures:,} have pictures."


def _legend(measured: bool) -> str:
    kinds = [(BETTER, "now right"), (WORSE, "now wrong"), (OTHER, "other change")] if measured else [(OTHER, "changed")]
    items = "".join(f"<li>{_swatch(colour)}&nbsp;{word}</li>" for colour, word in kinds)
    return f'<ul class="legend"><li>Changed pixels:</li>{items}</ul>'


def _toolbar(columns: list[tuple[str, str]], groups: list[str], measured: bool) -> str:
    sorts = [
        (f"{sign}{key}", f"{heading}, {word}")
        for key, heading in columns
        for sign, word in (("", "lowest first"), ("-", "highest first"))
    ]
    sorts += [("name", "Name, A to Z"), ("-name", "Name, Z to A")]
    # The first choice is the order that the rows stand in.
    sorts.sort(key=lambda sort: sort[0] != ("gain" if measured else "-changed"))
    shows = [("", "all"), *((group, group) for group in groups), ("pictures", "with pictures")]
    return (
        '<form id="tools" hidden>'
        f'<label>Sort <select name="sort">{_options(sorts)}</select></label>'
        f'<label>Show <select name="show">{_options(shows)}</select></label>'
        '<label>Find <input type="search" name="find" placeholder="image or class"></label>'
        "<output></output></form>"
    )


def _options(options: list[tuple[str, str]]) -> str:
    return "".join(f'<option value="{value}">{text}</option>' for value, text in options)


def _row(one: ShownRow, columns: list[tuple[str, str]]) -> str:
    row = one.row
    values = {key: getattr(row, key) for key, _ in columns}
    texts = {
        "before": percent(row.before),
        "after": percent(row.after),
        "gain": points(row.gain),
        "changed": percent(row.changed),
        "seconds": NONE if row.seconds is None else f"{row.seconds:.2f}",
    }
    data = "".join(f' data-{key}="{float(value)!r}"' for key, value in values.items() if value is not None)
    groups = " ".join((*(group.replace(" ", "-") for group in one.groups), *(["pictures"] if one.pictures else [])))
    cells = "".join(
        f'<td class="figure{_tone(key, values[key])}" data-label="{heading}">{texts[key]}</td>'
        for key, heading in columns
    )
    notes = [*row.warnings[:_MOST_WARNINGS]]
    if len(row.warnings) > _MOST_WARNINGS:
        notes.append(f"and {len(row.warnings) - _MOST_WARNINGS} more warnings")
    warnings = "".join(f'<p class="warning">{escaped(note)}</p>' for note in notes)
    name = f'<b class="name">{escaped(row.stem)}</b>'
    return (
        f'<tr{data} data-groups="{groups}"><td>{name}{_classes(row.classes)}{warnings}</td>'
        f'{cells}<td class="seen">{_pictures(one.pictures)}</td></tr>\n'
    )


def _tone(key: str, value: float | None) -> str:
    if key != "gain" or not value:
        return ""
    return " better" if value > 0 else " worse"


def _classes(classes: tuple[str, ...]) -> str:
    items = "".join(
        f"<li>{_swatch(class_colour(label))}&nbsp;{escaped(name)}</li>"
        for label, name in enumerate(classes[:_MOST_CLASSES], start=1)
    )
    more = f"<li>and {len(classes) - _MOST_CLASSES} more</li>" if len(classes) > _MOST_CLASSES else ""
    return f'<ul class="classes">{items}{more}</ul>' if items else ""


def _swatch(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return f'<i style="background:#{red:02x}{green:02x}{blue:02x}"></i>'


def _pictures(pictures: Pictures | None) -> str:
    if pictures is None:
        return ""
    width, height = pictures.size
    figures = "".join(
        f'<figure><img alt="{word}" width="{width}" height="{height}" decoding="async" '
        f'src="data:image/jpeg;base64,{base64.b64encode(content).decode("ascii")}">'
        f"<figcaption>{word}</figcaption></figure>"
        for word, content in (
            ("before", pictures.before),
            ("after", pictures.after),
            ("changed", pictures.changed),
            ("ground truth", pictures.truth),
        )
        if content is not None
    )
    return f'<div class="pictures">{figures}</div>'
