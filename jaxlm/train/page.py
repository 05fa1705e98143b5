"""The page that a report is: escaped markup, its style, and its few lines of script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = frozenset(("meta",))


class Html(str):
    """Text that is markup already; every other string is escaped where it is placed."""

    __slots__ = ()


def element(tag: str, /, *children: Any, **attributes: Any) -> Html:
    """``<tag attributes>children</tag>``, with all text and values escaped.

    A child is Html, text, None (nothing) or an iterable of these. In attribute names
    a last underscore is dropped and the others become hyphens; None leaves one out.
    """
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Html(f"<{tag}{opening}>")
    return Html(f"<{tag}{opening}>{join(children)}</{tag}>")


def join(children: Iterable[Any]) -> Html:
    """Children one after the other, each escaped unless it is Html."""
    return Html("".join(map(_markup, children)))


def section(title: str, *content: Any) -> Html:
    """A part of the page under its own heading."""
    return element("section", element("h2", title), *content)


def scroll_box(content: Html, label: str, tall: bool = False) -> Html:
    """A wide thing in a box that scrolls by itself, by keyboard too."""
    kind = "box tall" if tall else "box"
    return element(
        "div", content, class_=kind, role="region", aria_label=label, tabindex=0
    )


def page(title: str, *body: Any) -> str:
    """A whole document that loads nothing: the policy in its head forbids it too."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    content = element("body", *body, element("script", Html(SCRIPT)))
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"


def _markup(child: Any) -> str:
    if isinstance(child, Html):
        return child
    if child is None:
        return ""
    if isinstance(child, Iterable) and not isinstance(child, str):
        return join(child)
    return escape(str(child))


# The darkest shades of a heat map, --right and --wrong, are light enough for --ink in
# the light scheme and dark enough for it in the dark one: so is every shade between
# them and --fill, and a count is legible in any cell.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1d2125; --soft: #5a626b; --rule: #e2e2dc; --fill: #f2f2ee;
  --c0: #1f5f9e; --c1: #b3500f; --c2: #23745a; --c3: #7a4a94;
  --right: #5b8fc4; --wrong: #cf7a3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e6e8ea; --soft: #9aa3ac; --rule: #2c3136; --fill: #1d2125;
    --c0: #79b3e8; --c1: #eb9f63; --c2: #74c3a4; --c3: #c6a0dd;
    --right: #3b6a94; --wrong: #96552a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 71rem;
  background: var(--paper); color: var(--ink);
  font: 400 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { margin: 0; font-size: 1.75rem; font-weight: 650; line-height: 1.2;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 1rem; padding-top: .85rem; border-top: 1px solid var(--rule);
  font-size: 1.15rem; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 0; font-size: .95rem; font-weight: 600; }
p { margin: .25rem 0; }
.soft, caption { color: var(--soft); }
.subtitle { margin-top: .4rem; overflow-wrap: anywhere; }
.state { display: inline-block; margin-right: .35rem; font-weight: 600;
  color: var(--ink); }
.state::before { content: ""; display: inline-block; width: .6em; height: .6em;
  margin-right: .45em; border-radius: 50%; background: var(--c2); }
.state.running::before { background: var(--c0); }
.state.failed::before, .state.stopped::before { background: var(--c1); }
.reason { margin-top: .8rem; padding: .6rem .9rem; border-left: 3px solid var(--c1);
  background: var(--fill); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.25rem 2rem; margin: 2rem 0 0; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25;
  letter-spacing: -.01em; }
.tiles small { display: block; font-size: .82rem; font-weight: 400; letter-spacing: 0;
  color: var(--soft); }
.charts { display: grid; gap: 2rem 2.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.charts.small { margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 36rem; }
figcaption { display: flex; flex-direction: column; margin-bottom: .35rem; }
.small figcaption { flex-flow: row wrap; align-items: baseline; gap: 0 1rem; }
svg { display: block; }
.charts svg { width: 100%; height: auto; touch-action: pan-y; }
svg text { font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.faint { stroke-width: 1; opacity: .3; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); }
.s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s1 .line { stroke-dasharray: 7 3.5; } .s2 .line { stroke-dasharray: 2 3.5; }
.s3 .line { stroke-dasharray: 9 3 2 3; }
.line { stroke: var(--c); }
.dot { fill: var(--c); stroke: var(--paper); stroke-width: 1.2; }
svg text.name { fill: var(--c); font-weight: 600; }
.guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 2; }
.legend { display: flex; flex-wrap: wrap; gap: 0 .6rem; margin: 0; padding: 0;
  list-style: none; font-size: .8rem; color: var(--soft); }
.legend svg { display: inline-block; width: 18px; height: 6px; margin-right: .3rem;
  vertical-align: middle; }
.legend b { font-weight: 600; color: var(--ink); }
.readout { min-height: 1.4em; margin: .15rem 0 0; font-size: .82rem;
  color: var(--soft); }
.box { overflow: auto; max-width: 100%; border-radius: 2px; }
.box:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
.tall { max-height: 34rem; }
.pair { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.75rem 3rem; }
.pair > * { min-width: 0; }
table { border-collapse: collapse; font-size: .9rem; }
caption { padding: 0 0 .5rem; text-align: left; }
th, td { padding: .38rem .9rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th { font-weight: 600; }
tbody th { font-weight: 450; }
thead th { color: var(--soft); font-size: .82rem; font-weight: 500; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
thead th:first-child { color: var(--ink); font-weight: 600; }
td.strong { font-weight: 650; }
th.text, td.text { text-align: left; }
.better { color: var(--c2); } .worse { color: var(--c1); }
.bar { display: inline-block; width: 6rem; height: .5rem; margin-right: .8rem;
  background: var(--fill); }
.bar i { display: block; height: 100%; background: var(--right); }
.heat rect.ground { fill: var(--fill); }
.heat .right { fill: var(--right); } .heat .wrong { fill: var(--wrong); }
.heat .rule { stroke: var(--paper); stroke-width: 1; }
.heat text.count { fill: var(--ink); text-anchor: middle; pointer-events: none; }
.heat text.small { font-size: 11px; }
.heat text.axis { fill: var(--ink); font-weight: 600; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 0;
  vertical-align: -.05em; background: var(--right); }
.key.off { background: var(--wrong); margin-left: .8em; }
.columns { columns: 19rem 3; column-gap: 3rem; }
.columns > div { break-inside: avoid; margin-bottom: 1.75rem; }
.columns table { width: 100%; }
.columns td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.columns th { width: 42%; color: var(--soft); white-space: normal;
  vertical-align: top; }
footer { margin-top: 3rem; font-size: .82rem; color: var(--soft); }
@media (max-width: 48rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .bar { display: none; }
  h2 { margin-top: 2.25rem; }
  .tiles { gap: 1rem 1.25rem; margin-top: 1.5rem; }
  .tiles dd { font-size: 1.35rem; }
  th, td { padding-inline: .6rem; }
}
@media (max-width: 30rem) {
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .charts svg text { font-size: 13.5px; }
  th, td { padding-inline: .4rem; }
}
@media print { .box, .tall { overflow: visible; max-height: none; } }
"""

SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const { series, low, high, left, right } = JSON.parse(svg.dataset.series);
  const guide = svg.querySelector(".guide");
  const readout = svg.parentElement.querySelector(".readout");
  const note = readout.textContent;
  const show = (value) => {
    const size = Math.abs(value);
    if (size > 0 && size < 1e-3) return value.toPrecision(3);
    return value.toLocaleString("en", { maximumFractionDigits: size < 100 ? 4 : 0 });
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const step = low + ((at - left) / (right - left)) * (high - low);
    const far = (point) => Math.abs(point[0] - step);
    const nearest = (points) => points.reduce((a, b) => (far(b) < far(a) ? b : a));
    const found = series.map(({ points }) => nearest(points));
    const [x] = nearest(found);
    const place = left + ((x - low) / (high - low)) * (right - left);
    guide.setAttribute("x1", place);
    guide.setAttribute("x2", place);
    guide.removeAttribute("visibility");
    const texts = found.map((point, n) => {
      const elsewhere = point[0] === x ? "" : ` (step ${show(point[0])})`;
      return `${series[n].name} ${show(point[1])}${elsewhere}`;
    });
    readout.textContent = [`step ${show(x)}`, ...texts].join(" · ");
  });
  svg.addEventListener("pointerleave", () => {
    guide.setAttribute("visibility", "hidden");
    readout.textContent = note;
  });
}
"""
