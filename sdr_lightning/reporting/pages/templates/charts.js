"use strict";
// Elements, markers, a tooltip and line charts in SVG, without any library. Nothing here knows what a study is.
const charts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SHAPES = [
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-5.5l5.5,9.5h-11z",
    "M0,-6l6,6l-6,6l-6,-6z",
    "M0,5.5l5.5,-9.5h-11z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "M-5,-3l2,-2l3,3l3,-3l2,2l-3,3l3,3l-2,2l-3,-3l-3,3l-2,-2l3,-3z",
    "M0,-6l1.8,4.2l4.2,1.8l-4.2,1.8l-1.8,4.2l-1.8,-4.2l-4.2,-1.8l4.2,-1.8z",
  ];

  // ---- elements: attributes that are functions are listeners ----
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  // ---- markers: a look is {colour, shape} ----
  const marker = (look, attributes = {}) => draw("path", { d: SHAPES[look.shape], fill: look.colour, ...attributes });
  function swatch(look, attributes = {}) {
    const box = { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" };
    return draw("svg", { ...box, ...attributes }, marker(look));
  }

  // ---- tooltip ----
  const tip = () => document.getElementById("tip");
  function showTip(event, lines) {
    const [title, ...rest] = lines;
    tip().replaceChildren(make("b", {}, title), ...rest.flatMap((line) => [line, make("br")]));
    tip().hidden = false;
    const box = tip().getBoundingClientRect();
    const below = event.clientY + 18 + box.height <= innerHeight;
    tip().style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip().style.top = `${below ? event.clientY + 18 : event.clientY - box.height - 12}px`;
  }
  const hideTip = () => { tip().hidden = true; };

  // ---- scales ----
  function ticksBetween(low, high, count) {
    const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  }
  const tickText = (value) => String(value).replace("-", "−");
  function padded(values) {
    const low = Math.min(...values), high = Math.max(...values);
    const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  }
  const ends = (points) => points.flatMap((p) => [p.mean - (p.half ?? 0), p.mean + (p.half ?? 0)]);

  // ---- line charts ----
  // A panel has title, xLabel, yLabel and series, and optionally range (of y) and ticks (of x). A series has a look, points
  // {x, mean, half, tip(), click()}, thin lines of [x, y] behind them, and may be dotted (no line) or bare (no markers).
  function lines(width, panels, { log = false, height = 250 } = {}) {
    const columns = Math.max(1, Math.min(panels.length, Math.floor(width / 330)));
    const each = Math.floor((width - 22 * (columns - 1)) / columns);
    const grid = `grid-template-columns: repeat(${columns}, minmax(0, 1fr))`;
    const drawn = panels.map((panel) => make("div", { class: "group" }, make("h3", {}, panel.title), panelOf(panel, each, height, log)));
    return make("div", { class: "panels", style: grid }, ...drawn);
  }
  function panelOf(panel, width, height, log) {
    const left = 44, right = 12, top = 8, bottom = 40;
    const points = panel.series.flatMap((series) => series.points);
    const thin = panel.series.flatMap((series) => series.thin ?? []).flat();
    const label = `${panel.title}: ${panel.yLabel} against ${panel.xLabel}`;
    const svg = draw("svg", { width, height, role: "img", "aria-label": label });
    const text = (x, y, anchor, content) => draw("text", { x, y, "text-anchor": anchor }, content);
    if (!points.length) return fill(svg, {}, [text(width / 2, height / 2, "middle", "no run yet")]);

    const [yLow, yHigh] = panel.range ?? padded([...ends(points), ...thin.map((p) => p[1])]);
    const f = log ? Math.log2 : (value) => value;
    const [xLow, xHigh] = padded([...points.map((p) => f(p.x)), ...thin.map((p) => f(p[0]))]);
    const X = (value) => left + ((f(value) - xLow) / (xHigh - xLow)) * (width - left - right);
    const Y = (value) => height - bottom - ((value - yLow) / (yHigh - yLow)) * (height - top - bottom);
    const path = (list) => list.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("");

    for (const tick of ticksBetween(yLow, yHigh, 5)) {
      svg.append(draw("line", { x1: left, x2: width - right, y1: Y(tick), y2: Y(tick), stroke: "var(--line)" }));
      svg.append(text(left - 6, Y(tick) + 4, "end", tickText(tick)));
    }
    for (const tick of panel.ticks ?? ticksBetween(xLow, xHigh, 5)) {
      svg.append(text(X(tick), height - bottom + 17, "middle", tickText(tick)));
    }
    svg.append(text((left + width - right) / 2, height - 4, "middle", panel.xLabel));

    const markers = [];
    for (const { look, points: own, thin: behind = [], dotted = false, bare = false } of panel.series) {
      const line = { fill: "none", stroke: look.colour };
      for (const curve of behind) svg.append(draw("path", { ...line, d: path(curve), "stroke-width": 0.8, opacity: 0.35 }));
      const d = path(own.map((p) => [p.x, p.mean]));
      if (!dotted) svg.append(draw("path", { ...line, d, "stroke-width": look.shape ? 1.6 : 2.4 }));
      for (const p of own) {
        const bar = `M${X(p.x)},${Y(p.mean - p.half)}V${Y(p.mean + p.half)}`;
        if (p.half) svg.append(draw("path", { ...line, d: bar, opacity: 0.6 }));
        if (!bare || own.length === 1) markers.push(marker(look, { transform: `translate(${X(p.x)},${Y(p.mean)})` }));
      }
    }
    const ring = draw("circle", { r: 9, fill: "none", stroke: "var(--ink)", visibility: "hidden" });
    svg.append(...markers, ring);
    answerPointer(svg, ring, points, X, Y);
    return svg;
  }
  function answerPointer(svg, ring, points, X, Y) {
    function nearest(event) {
      const frame = svg.getBoundingClientRect();
      const far = (p) => Math.hypot(event.clientX - frame.left - X(p.x), event.clientY - frame.top - Y(p.mean));
      const best = points.reduce((a, b) => (far(b) < far(a) ? b : a));
      return far(best) < 40 ? best : null;
    }
    function leave() {
      ring.setAttribute("visibility", "hidden");
      hideTip();
    }
    svg.addEventListener("pointermove", (event) => {
      const p = nearest(event);
      svg.style.cursor = p?.click ? "pointer" : "default";
      if (!p) return leave();
      ring.setAttribute("visibility", "visible");
      ring.setAttribute("transform", `translate(${X(p.x)},${Y(p.mean)})`);
      showTip(event, p.tip());
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("click", (event) => nearest(event)?.click?.());
  }

  return { make, swatch, showTip, hideTip, ticksBetween, tickText, padded, ends, lines };
})();
