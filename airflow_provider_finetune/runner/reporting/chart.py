"""The loss chart: one HTML page that needs nothing else, no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from airflow_provider_finetune.runner.reporting.chart_figure import Figure, draw
from airflow_provider_finetune.runner.reporting.chart_scale import count_text, loss_text
from airflow_provider_finetune.runner.reporting.metrics import Point
from airflow_provider_finetune.runner.reporting.series import Series

_LONGEST_TITLE = 300

_STYLE = """
:root { color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --line: #e3e6ea; --grid: #eceef1; --base: #b3bac3;
  --ink: #1b1f24; --soft: #5b6470;
  --loss: #2458d3; --eval: #b45309; --rate: #0f766e; --bad: #c81e1e; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1116; --card: #161a21; --line: #2a303a; --grid: #232932; --base: #566070;
  --ink: #e8ebf0; --soft: #9aa4b2;
  --loss: #7aa2ff; --eval: #f5a84b; --rate: #4fd1c0; --bad: #ff7b7b; --good: #5fd38a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 24px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 32px 24px; background: var(--card);
  border: 1px solid var(--line); border-radius: 14px; }
h1 { margin: 0; font-size: 22px; line-height: 1.3; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
.subtitle { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.alarm { margin: 18px 0 0; padding: 10px 14px; border-radius: 8px; border: 1px solid var(--bad); color: var(--bad);
  font-weight: 550; }
dl { display: flex; flex-wrap: wrap; gap: 14px 32px; margin: 22px 0 0; padding: 16px 0; border: solid var(--line);
  border-width: 1px 0; }
dt { font-size: 12.5px; color: var(--soft); }
dd { margin: 0; font-size: 20px; font-weight: 600; line-height: 1.35; font-variant-numeric: tabular-nums; }
dd small { font-size: 12.5px; font-weight: 400; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 18px 0 10px; padding: 0; list-style: none;
  font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 8px; }
.legend svg { width: 24px; height: 14px; }
.wide { overflow-x: auto; }
.wide > svg { display: block; width: 100%; min-width: 640px; height: auto; }
.notes { margin: 12px 0 0; font-size: 12.5px; color: var(--soft); }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .axis { font-weight: 600; } svg .note { font-size: 11px; } svg .empty { font-size: 15px; }
svg polyline, .grid, .base, .epoch { fill: none; }
.grid { stroke: var(--grid); } .base { stroke: var(--base); } .epoch { stroke: var(--base); stroke-dasharray: 2 4; }
.raw { stroke: var(--loss); stroke-opacity: .42; stroke-width: 1; stroke-linejoin: round; }
.raw.dense { stroke-opacity: .24; }
.strong { stroke: var(--loss); stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round; }
.raw-dot { fill: var(--loss); fill-opacity: .4; } .strong-dot { fill: var(--loss); }
.rate { stroke: var(--rate); stroke-width: 1.75; stroke-linejoin: round; }
.rate-area { fill: var(--rate); fill-opacity: .1; }
.rate-dot { fill: var(--rate); }
.eval-line { stroke: var(--eval); stroke-width: 1.25; stroke-opacity: .55; }
.eval { fill: var(--card); stroke: var(--eval); stroke-width: 1.75; } .eval.best { fill: var(--eval); }
.minimum { fill: none; stroke: var(--good); stroke-width: 2; pointer-events: all; }
.final { fill: var(--loss); stroke: var(--card); stroke-width: 1.5; }
.bad rect { fill: var(--bad); fill-opacity: .16; } .bad path { stroke: var(--bad); stroke-width: 2; fill: none; }
.arrow { fill: var(--loss); }
svg .label { font-weight: 600; }
svg .label, svg .note { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
svg .final-text { fill: var(--loss); } svg .eval-text { fill: var(--eval); } svg .rate-text { fill: var(--rate); }
svg .minimum-text { fill: var(--good); pointer-events: none; }
.hit rect { fill: none; pointer-events: all; } .hit > :not(rect) { visibility: hidden; pointer-events: none; }
.hit:hover > * { visibility: visible; } .hit path { stroke: var(--base); }
.here { fill: var(--loss); stroke: var(--card); stroke-width: 1.5; } svg .readout { fill: var(--ink); }
@media (max-width: 640px) { body { padding: 0; } main { border: 0; border-radius: 0; padding: 20px 16px; } }
"""

_KEYS = {
    "loss": '<path class="strong" d="M1 7H23"/>',
    "raw": '<path class="raw" d="M1 9l4-5 4 7 4-8 4 8 3-5 3 3" fill="none"/>',
    "smoothed": '<path class="strong" d="M1 7H23"/>',
    "eval": '<path class="eval" d="M12 2l5 5l-5 5l-5-5z"/>',
    "minimum": '<circle class="minimum" cx="12" cy="7" r="5"/>',
    "final": '<circle class="final" cx="12" cy="7" r="4.5"/>',
    "clipped": '<path class="arrow" d="M12 2l6 9h-12z"/>',
    "bad": '<g class="bad"><rect x="4" y="0" width="16" height="14"/><path d="M8 3l8 8m0-8l-8 8"/></g>',
    "rate": '<path class="rate" d="M1 11L7 3H14L23 11" fill="none"/>',
}


def render_chart(points: Series | Iterable[Point], *, title: str, subtitle: str = "") -> str:
    """Draws a training as one self-contained HTML page of less than 200 kB, however many points there are.

    It has a light and a dark look and follows the reader's system. Title and subtitle are escaped, and cut at 300
    characters.

    :param points: a training's points, or the series made of them
    :param title: what was trained, such as the model's name
    :param subtitle: one line more, such as data set and algorithm
    """
    series = points if isinstance(points, Series) else Series(points)
    summary = series.summary()
    figure = draw(series, _in_words(summary))
    heading, below = _shown(title), _shown(subtitle)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{heading}</title><style>{_STYLE}</style></head>\n<body><main><header><h1>{heading}</h1>"
        + (f'<p class="subtitle">{below}</p>' if below else "")
        + f"</header>{_alarm(summary)}{_tiles(summary)}{_legend(series, figure)}\n"
        f'<div class="wide">{figure.svg}</div>\n{_notes(figure)}</main></body></html>\n'
    )


def _shown(text: str) -> str:
    return escape(text if len(text) <= _LONGEST_TITLE else text[: _LONGEST_TITLE - 1] + "…")


def _alarm(summary: dict[str, Any]) -> str:
    count = summary["non_finite_steps"]
    if not count:
        return ""
    steps = "1 logged step" if count == 1 else f"{count_text(count)} logged steps"
    first = f"{summary['first_non_finite_step']:,}"
    return f'<p class="alarm" role="note">Loss or gradient was NaN or infinite in {steps}, first at step {first}.</p>'


def _tiles(summary: dict[str, Any]) -> str:
    """The figures that one looks for first."""
    tiles = []
    for name, value, step in (
        ("Final loss", "loss", None),
        ("Lowest loss", "best_loss", "best_step"),
        ("Final evaluation loss", "eval_loss", None),
        ("Lowest evaluation loss", "best_eval_loss", "best_eval_step"),
    ):
        if value in summary["not_finite"]:
            tiles.append((name, "not finite", ""))
        elif summary[value] is not None:
            tiles.append((name, loss_text(summary[value]), f"at step {summary[step]:,}" if step else ""))
    total = summary["total_steps"]
    unfinished = total is not None and total > summary["steps"]
    notes = [f"of {total:,}"] if unfinished else []
    if (epoch := summary["epoch"]) is not None:
        number = f"{epoch:.2f}".rstrip("0").rstrip(".")
        notes.append(f"{number} epoch" + ("" if number == "1" else "s"))
    tiles.append(("Steps", f"{summary['steps']:,}", " · ".join(notes)))
    if summary["tokens"]:
        tiles.append(("Tokens", count_text(summary["tokens"]), ""))
    cells = (f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in tiles)
    return f"<dl>{''.join(cells)}</dl>"


def _legend(series: Series, figure: Figure) -> str:
    smoothed = figure.span > 1
    entries = {
        "loss": "loss" if series.loss.best and not smoothed else "",
        "raw": "loss as logged" if smoothed else "",
        "smoothed": "loss, smoothed" if smoothed else "",
        "eval": "evaluation loss (filled: lowest)" if series.evaluations.best else "",
        "minimum": "lowest loss" if series.loss.best else "",
        "final": f"{figure.final_name} loss" if series.loss.best else "",
        "clipped": "off the scale" if figure.clipped else "",
        "bad": "NaN or infinite" if series.non_finite else "",
        "rate": "learning rate" if figure.has_rates else "",
    }
    shown = (
        f'<li><svg viewBox="0 0 24 14" aria-hidden="true">{_KEYS[key]}</svg>{text}</li>'
        for key, text in entries.items()
        if text
    )
    return f'<ul class="legend">{"".join(shown)}</ul>'


def _notes(figure: Figure) -> str:
    notes = []
    if figure.span > 1:
        notes.append(
            f"Smoothed: exponential moving average over {count_text(figure.span)} logged steps, forwards and backwards."
        )
    if figure.clipped:
        step, value = figure.clipped
        notes.append(f"The loss goes off the scale, up to {loss_text(value)} at step {step:,}.")
    return f'<p class="notes">{" ".join(notes)}</p>' if notes else ""


def _in_words(summary: dict[str, Any]) -> str:
    if summary["best_loss"] is None:
        return "No finite loss was logged."
    words = [f"Training loss over {summary['steps']:,} steps."]
    if summary["loss"] is not None:
        words.append(f"It ends at {loss_text(summary['loss'])}.")
    words.append(f"Its lowest value is {loss_text(summary['best_loss'])} at step {summary['best_step']:,}.")
    if summary["best_eval_loss"] is not None:
        best, step = loss_text(summary["best_eval_loss"]), summary["best_eval_step"]
        words.append(f"The lowest evaluation loss is {best} at step {step:,}.")
    if summary["non_finite_steps"]:
        words.append(f"Loss or gradient was not finite in {summary['non_finite_steps']:,} logged steps.")
    return " ".join(words)
