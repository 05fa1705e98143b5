"""What is wrong with how a page lies on a screen, measured in the browser itself."""

from __future__ import annotations

from tools.browser import Browser

CONTRAST = 4.5
"""The least ratio of text to its ground: WCAG 2.2, level AA."""


def faults(page: Browser) -> list[str]:
    """Complaints of the console; text too wide, cut off, in another's way or pale."""
    return [*page.complaints(), *page.evaluate(f"({MEASURE})({CONTRAST})")]


MEASURE = """
(leastContrast) => {
  const found = [];
  const name = (node) => (node.textContent || node.tagName).trim().slice(0, 40);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    found.push(`${root.scrollWidth} px wide on a screen of ${root.clientWidth}`);
  const shown = (node) => node.getClientRects().length > 0
    && getComputedStyle(node).visibility === "visible";
  const ownText = (node) => [...node.childNodes].some(
    (child) => child.nodeType === 3 && child.data.trim());

  for (const node of document.querySelectorAll("body *")) {
    const wide = node.clientWidth && node.scrollWidth > node.clientWidth + 1;
    if (wide && !node.closest(".box, svg")) found.push(`overflows: ${name(node)}`);
  }
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter(shown);
    const places = texts.map((text) => text.getBoundingClientRect());
    places.forEach((a, n) => {
      const out = Math.max(
        box.left - a.left, a.right - box.right, box.top - a.top, a.bottom - box.bottom);
      if (out > 1) found.push(`cut off by ${out.toFixed(1)} px: ${name(texts[n])}`);
      if (!svg.dataset.series) return; // the slanted names of a heat map lie close
      for (let m = 0; m < n; m++) {
        const b = places[m];
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        // The box of a line is taller than its letters.
        if (x > 0.5 && y > 0.2 * Math.min(a.height, b.height))
          found.push(`over one another: ${name(texts[m])} and ${name(texts[n])}`);
      }
    });
  }

  const rgba = (text) => {
    const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a ?? 1];
  };
  const blend = (top, below) =>
    [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3])).concat(1);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    if (node.matches("text.count")) { // a number stands on the shade before it
      const cell = getComputedStyle(node.previousElementSibling);
      const sheet = node.closest("svg").querySelector(".ground");
      const shade = rgba(cell.fill);
      shade[3] = Number(cell.fillOpacity);
      return blend(shade, rgba(getComputedStyle(sheet).fill));
    }
    for (let each = node; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  for (const node of document.querySelectorAll("body *")) {
    if (node.matches("script, style") || !ownText(node) || !shown(node)) continue;
    const style = getComputedStyle(node);
    const below = ground(node);
    const ink = rgba(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(blend(ink, below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < leastContrast)
      found.push(`contrast ${ratio.toFixed(2)}: ${name(node)}`);
  }
  return found;
}
"""
