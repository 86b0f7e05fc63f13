"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data"), pictures = read("pictures");
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const MINUS = "−", NBSP = "\u00a0";

  // ---- small helpers ----
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    return fill(node, attributes, children);
  }
  function draw(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const number = (value, decimals) => value.toFixed(decimals).replace(/^-(0(\.0*)?)$/, "$1").replace("-", MINUS);
  const signed = (value, decimals) => (value > 0 && Number(value.toFixed(decimals)) ? "+" : "") + number(value, decimals);
  function bounds(found, decimals) {
    return found.half === null ? "" : `[${number(found.mean - found.half, decimals)}, ${number(found.mean + found.half, decimals)}]`;
  }

  // ---- methods: colour and marker are the same everywhere ----
  const others = data.methods.map((_, i) => i).filter((i) => i !== data.baseline && i !== data.candidate);
  function style(method) {
    if (method === data.baseline) return { colour: "var(--ink)", shape: 0 };
    if (method === data.candidate) return { colour: "var(--candidate)", shape: 0 };
    const place = others.indexOf(method);
    return { colour: `var(--method-${place % 6})`, shape: 1 + (place % 7) };
  }
  const SHAPES = [
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", "M-4.5,-4.5h9v9h-9z", "M0,-5.5l5.5,9.5h-11z", "M0,-6l6,6l-6,6l-6,-6z", "M0,5.5l5.5,-9.5h-11z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z", "M-5,-3l2,-2l3,3l3,-3l2,2l-3,3l3,3l-2,2l-3,-3l-3,3l-2,-2l3,-3z", "M0,-6l1.8,4.2l4.2,1.8l-4.2,1.8l-1.8,4.2l-1.8,-4.2l-4.2,-1.8l4.2,-1.8z",
  ];
  const marker = (look, attributes = {}) => draw("path", { d: SHAPES[look.shape], fill: look.colour, ...attributes });
  const swatch = (look) => draw("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, marker(look));

  // ---- tooltip ----
  function showTip(event, lines) {
    const [title, ...rest] = lines.filter(Boolean);
    at("tip").replaceChildren(make("b", {}, title), ...rest.flatMap((line) => [line, make("br")]));
    at("tip").hidden = false;
    const box = at("tip").getBoundingClientRect();
    const target = event.target.getBoundingClientRect();
    const x = event.clientX ?? target.right, y = event.clientY ?? target.bottom;
    at("tip").style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    at("tip").style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
  }
  const hideTip = () => { at("tip").hidden = true; };

  // ---- the numbers of one method under one condition ----
  const cell = (quantity, method, condition) => data.cells[quantity]?.[method][condition] ?? null;
  function seedsLine(values, decimals) {
    const seeds = Object.entries(values);
    const shown = seeds.slice(0, 10).map(([seed, value]) => `${seed}: ${number(value, decimals)}`);
    return `seeds ${shown.join(", ")}${seeds.length > 10 ? ", …" : ""}`;
  }
  function describe(quantity, method, condition) {
    const found = cell(quantity, method, condition), q = data.quantities[quantity];
    const lines = [`${data.methods[method].name}, ${data.conditions[condition].label}`];
    if (!found) return [...lines, "no run yet"];
    lines.push(`${q.label}: ${number(found.mean, q.decimals)} ${bounds(found, q.decimals)}`);
    if (found.difference) {
      const base = data.methods[data.methods[method].baseline].name;
      lines.push(`${MINUS} ${base}: ${signed(found.difference.mean, q.differenceDecimals)} ${bounds(found.difference, q.differenceDecimals)}, ${found.difference.verdict}`);
    }
    return [...lines, seedsLine(found.values, q.decimals), "Click for its runs."];
  }

  // ---- dialog: the runs behind a number ----
  function differences(found, base) {
    return Object.fromEntries(Object.keys(found.values).filter((seed) => seed in base.values).map((seed) => [seed, found.values[seed] - base.values[seed]]));
  }
  function showRuns(quantity, method, condition) {
    const found = cell(quantity, method, condition), q = data.quantities[quantity];
    const { name, description, baseline } = data.methods[method];
    const base = baseline === method ? null : cell(quantity, baseline, condition);
    at("runs-title").textContent = `${name}, ${data.conditions[condition].label}: ${q.label}`;
    hideTip();
    if (!found) {
      at("runs-content").replaceChildren(make("p", {}, "No run yet."));
      return at("runs-of").showModal();
    }
    const content = [make("p", {}, `Mean over ${Object.keys(found.values).length} seeds: ${number(found.mean, q.decimals)} ${bounds(found, q.decimals)}.` +
      (found.difference ? ` Paired difference from ${data.methods[baseline].name}: ${signed(found.difference.mean, q.differenceDecimals)} ${bounds(found.difference, q.differenceDecimals)}, ${found.difference.verdict}.` : "")) ];
    if (description) content.push(make("p", {}, `${name}: ${description}`));
    const heads = ["Seed", "Value", ...(base ? [`${MINUS} ${data.methods[baseline].name}`] : []), "Epoch", "Commit"];
    const detail = make("div");
    const byDifference = base ? differences(found, base) : {};
    const rows = data.runs[method][condition].filter((run) => run.seed in found.values).map((run) => make("tr", { click: () => choose(run) },
      make("th", {}, String(run.seed)), make("td", {}, number(found.values[run.seed], q.decimals + 1)),
      base ? make("td", {}, run.seed in byDifference ? signed(byDifference[run.seed], q.differenceDecimals) : "–") : null,
      make("td", {}, run.epoch === null ? "–" : String(run.epoch)), make("td", {}, run.commit)));
    const link = (run, file) => make("a", { href: encodeURI(`${run.folder}/${file}`).replace(/#/g, "%23") }, file);
    function choose(run) {
      rows.forEach((row) => row.classList.toggle("chosen", row.firstChild.textContent === String(run.seed)));
      const options = Object.entries(run.options).map(([option, value]) => `${option} ${JSON.stringify(value)}`);
      detail.replaceChildren(make("p", {}, make("b", {}, `Seed ${run.seed}`), `, ${run.folder}: `, ...run.files.flatMap((file, i) => [i ? ", " : "", link(run, file)])),
        ...(options.length ? [make("p", {}, `Chosen options: ${options.join(", ")}`)] : []),
        ...(run.files.includes("config.yaml") ? [make("p", {}, "Train it again, and test it:"), make("pre", {}, commands(run))] : []));
    }
    content.push(make("div", { class: "scroll" }, make("table", { class: "numeric" }, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))), make("tbody", {}, ...rows))), detail);
    at("runs-content").replaceChildren(...content);
    const first = data.runs[method][condition].find((run) => run.seed in found.values);
    if (first) choose(first);
    at("runs-of").showModal();
  }
  function commands(run) {
    const folder = location.protocol === "file:" ? decodeURIComponent(location.pathname).replace(/[^/]*$/, "") : "";
    const quoted = (path) => (/[^\w./-]/.test(path) ? `'${path.replaceAll("'", "'\\''")}'` : path);
    const config = quoted(`${folder}${run.folder}/config.yaml`);
    return `sdr fit --config ${config} --run_dir runs/again\nsdr test --config ${config} --run_dir runs/again --ckpt_path runs/again/checkpoints/best.ckpt`;
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-runs]");
    if (!button?.dataset.runs) return;
    const [quantity, method, condition] = button.dataset.runs.split("|");
    showRuns(quantity, data.methods.findIndex((m) => m.name === method), data.conditions.findIndex((c) => c.label === condition));
  });
  at("runs-of").addEventListener("click", (event) => { if (event.target === at("runs-of")) at("runs-of").close(); });

  // ---- scales ----
  function ticksBetween(low, high, count) {
    const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(Number(tick.toPrecision(12)));
    return ticks;
  }
  const tickText = (value) => String(value).replace("-", MINUS);
  function padded(values) {
    const low = Math.min(...values), high = Math.max(...values), margin = 0.05 * (high - low) || Math.abs(high) * 0.05 || 1;
    return [low - margin, high + margin];
  }

  // ---- view: dots with intervals ----
  const MARKS = { supported: "▲", "not supported": "▼", undecided: "○" };
  function dots(host, quantity, shown, ofDifferences) {
    const q = data.quantities[quantity], decimals = ofDifferences ? q.differenceDecimals : q.decimals;
    const groups = data.conditions.map((condition, c) => {
      const rows = shown.map((m) => {
        const found = cell(quantity, m, c);
        if (!found) return null;
        if (!ofDifferences) return { m, c, seeds: Object.values(found.values), ...found };
        if (!found.difference) return null;
        const base = cell(quantity, data.methods[m].baseline, c);
        return { m, c, ...found.difference, seeds: Object.values(differences(found, base)) };
      });
      return { condition, rows: rows.filter(Boolean).sort((a, b) => b.mean - a.mean) };
    }).filter((group) => group.rows.length);
    if (!groups.length) return host.replaceChildren(make("p", { class: "missing" }, "No run has these numbers yet."));
    const ends = groups.flatMap(({ rows }) => rows.flatMap(({ mean, half, seeds }) => [mean - (half ?? 0), mean + (half ?? 0), ...seeds]));
    const [low, high] = padded(ofDifferences ? [...ends, 0] : ends);
    const place = (value) => `${(100 * (value - low)) / (high - low)}%`;
    const ticks = ticksBetween(low, high, innerWidth < 720 ? 4 : 7);
    const lines = () => ticks.map((tick) => make("i", { class: `line${ofDifferences && tick === 0 ? " zero" : ""}`, style: `left: ${place(tick)}` }));
    const axis = (plot) => make("div", { class: "row axis", "aria-hidden": "true" }, make("span", { class: "label" }), plot, make("span", { class: "number" }));
    const scale = axis(make("div", { class: "plot" }, ...ticks.map((tick) => make("span", { style: `left: ${place(tick)}` }, tickText(tick)))));
    const base = data.methods[data.baseline].name;
    const sides = ofDifferences ? axis(make("div", { class: "sides" }, make("span", {}, `◂ lower than ${base}`), make("span", {}, "higher ▸"))) : null;
    const chart = groups.map(({ condition, rows }) => make("div", { class: "group" }, make("h3", {}, condition.label), ...rows.map((row) => {
      const look = style(row.m), tip = (event) => showTip(event, describe(quantity, row.m, row.c));
      const text = ofDifferences ? signed(row.mean, decimals) : number(row.mean, decimals);
      return make("div", { class: `row${row.m === data.candidate ? " leading" : ""}`, pointermove: tip, pointerleave: hideTip, click: (event) => event.target.closest("button") || showRuns(quantity, row.m, row.c) },
        make("span", { class: "label" }, swatch(look), data.methods[row.m].name),
        make("div", { class: "plot" }, ...lines(),
          row.half === null ? null : make("i", { class: "interval", style: `left: ${place(row.mean - row.half)}; width: ${(200 * row.half) / (high - low)}%; background: ${look.colour}` }),
          ...row.seeds.map((value) => make("i", { class: "seed", style: `left: ${place(value)}; background: ${look.colour}` })),
          fill(swatch(look), { style: `left: ${place(row.mean)}` }, [])),
        make("span", { class: "number" }, ofDifferences ? make("span", { class: `mark ${row.verdict.replace(" ", "-")}` }, MARKS[row.verdict], " ") : null, make("button", { class: "value", "data-runs": [quantity, data.methods[row.m].name, condition.label].join("|") }, text), ` `, make("span", { class: "detail" }, bounds(row, decimals))));
    })));
    host.replaceChildren(...[sides, scale, ...chart, scale.cloneNode(true)].filter(Boolean));
  }

  // ---- view: lines ----
  // A panel has a title, a label of x and series; a series has a look, a name, points {x, mean, half, tip, cell} and thin lines.
  function lines(host, panels, { log = false, ticks = null, height = 250 } = {}) {
    const columns = Math.max(1, Math.min(panels.length, Math.floor((host.clientWidth || 800) / 330)));
    const width = Math.floor(((host.clientWidth || 800) - 22 * (columns - 1)) / columns);
    const box = make("div", { class: "panels", style: `grid-template-columns: repeat(${columns}, minmax(0, 1fr))` });
    for (const panel of panels) box.append(make("div", { class: "group" }, make("h3", {}, panel.title), panelOf(panel, width, height, log, ticks)));
    return box;
  }
  function panelOf(panel, width, height, log, xTicks) {
    const left = 44, right = 12, top = 8, bottom = 40;
    const points = panel.series.flatMap((series) => series.points), thin = panel.series.flatMap((series) => series.thin ?? []).flat();
    const svg = draw("svg", { width, height, role: "img", "aria-label": `${panel.title}: ${panel.yLabel} against ${panel.xLabel}` });
    if (!points.length) return fill(svg, {}, [draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no run yet")]);
    const [yLow, yHigh] = panel.range ?? padded([...points.flatMap((p) => [p.mean - (p.half ?? 0), p.mean + (p.half ?? 0)]), ...thin.map((p) => p[1])]);
    const f = log ? Math.log2 : (value) => value;
    const [xLow, xHigh] = padded([...points, ...thin.map(([x]) => ({ x }))].map((p) => f(p.x)));
    const X = (value) => left + ((f(value) - xLow) / (xHigh - xLow)) * (width - left - right);
    const Y = (value) => height - bottom - ((value - yLow) / (yHigh - yLow)) * (height - top - bottom);
    for (const tick of ticksBetween(yLow, yHigh, 5)) {
      svg.append(draw("line", { x1: left, x2: width - right, y1: Y(tick), y2: Y(tick), stroke: "var(--line)" }), draw("text", { x: left - 6, y: Y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
    }
    for (const tick of xTicks ?? panel.xTicks ?? ticksBetween(xLow, xHigh, 5)) svg.append(draw("text", { x: X(tick), y: height - bottom + 17, "text-anchor": "middle" }, tickText(tick)));
    svg.append(draw("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, panel.xLabel));
    const path = (list) => list.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("");
    const markers = [];
    for (const { look, points: own, thin: curves = [], joined = true, dotted = false } of panel.series) {
      for (const curve of curves) svg.append(draw("path", { d: path(curve), fill: "none", stroke: look.colour, "stroke-width": 0.8, opacity: 0.35 }));
      if (joined) svg.append(draw("path", { d: path(own.map((p) => [p.x, p.mean])), fill: "none", stroke: look.colour, "stroke-width": look.shape ? 1.6 : 2.4 }));
      for (const p of own) {
        if (p.half) svg.append(draw("path", { d: `M${X(p.x)},${Y(p.mean - p.half)}V${Y(p.mean + p.half)}`, stroke: look.colour, opacity: 0.6 }));
        if (!dotted || own.length === 1) markers.push(marker(look, { transform: `translate(${X(p.x)},${Y(p.mean)})` }));
      }
    }
    const ring = draw("circle", { r: 9, fill: "none", stroke: "var(--ink)", visibility: "hidden" });
    svg.append(...markers, ring);
    const nearest = (event) => {
      const frame = svg.getBoundingClientRect();
      const far = (p) => Math.hypot(event.clientX - frame.left - X(p.x), event.clientY - frame.top - Y(p.mean));
      const best = points.reduce((a, b) => (far(b) < far(a) ? b : a));
      return far(best) < 40 ? best : null;
    };
    svg.addEventListener("pointermove", (event) => {
      const p = nearest(event);
      ring.setAttribute("visibility", p ? "visible" : "hidden");
      svg.style.cursor = p?.cell ? "pointer" : "default";
      if (!p) return hideTip();
      ring.setAttribute("transform", `translate(${X(p.x)},${Y(p.mean)})`);
      showTip(event, p.tip());
    });
    svg.addEventListener("pointerleave", () => { ring.setAttribute("visibility", "hidden"); hideTip(); });
    svg.addEventListener("click", (event) => { const p = nearest(event); if (p?.cell) showRuns(...p.cell); });
    return svg;
  }
  function point(quantity, m, c, x) {
    const found = cell(quantity, m, c);
    return found && { x, mean: found.mean, half: found.half, cell: [quantity, m, c], tip: () => describe(quantity, m, c) };
  }
  function withOneRange(panels) {
    const all = panels.flatMap((panel) => panel.series.flatMap((series) => series.points));
    if (all.length) panels.forEach((panel) => { panel.range = padded(all.flatMap((p) => [p.mean - (p.half ?? 0), p.mean + (p.half ?? 0)])); });
    return panels;
  }
  function againstRatio(host, quantity, shown) {
    const panels = data.curves.map(({ imbalance, conditions }) => ({
      title: imbalance, xLabel: "% of the training data", yLabel: data.quantities[quantity].label,
      xTicks: conditions.map((c) => Number((100 * data.conditions[c].ratio).toPrecision(6))),
      series: shown.map((m) => ({ look: style(m), points: conditions.map((c) => point(quantity, m, c, 100 * data.conditions[c].ratio)).filter(Boolean) })),
    }));
    host.replaceChildren(lines(host, withOneRange(panels)));
  }
  function againstDegree(host, quantity, shown) {
    const known = data.conditions.map((condition, c) => [condition.degree, c]).filter(([degree]) => degree !== null);
    const panel = { title: "all conditions", xLabel: "measured degree of imbalance", yLabel: data.quantities[quantity].label,
      series: shown.map((m) => ({ look: style(m), joined: false, points: known.map(([degree, c]) => point(quantity, m, c, degree)).filter(Boolean) })) };
    host.replaceChildren(lines(host, [panel], { height: 340 }));
  }
  function againstField(host, quantity, shown, field) {
    const members = shown.filter((m) => data.methods[m].swept?.field === field);
    const families = [...new Set(members.map((m) => data.methods[m].swept.family))];
    const looks = Object.fromEntries(families.map((family, i) => [family, families.length === 1 ? style(data.candidate) : family === data.methods[data.baseline].swept?.family ? style(data.baseline) : family === data.methods[data.candidate].swept?.family ? style(data.candidate) : { colour: `var(--method-${i % 6})`, shape: 1 + (i % 7) }]));
    const values = [...new Set(members.map((m) => data.methods[m].swept.value))].sort((a, b) => a - b);
    const panels = data.conditions.map((condition, c) => ({ title: condition.label, xLabel: field, yLabel: data.quantities[quantity].label,
      series: families.map((family) => ({ look: looks[family], points: members.filter((m) => data.methods[m].swept.family === family).map((m) => point(quantity, m, c, data.methods[m].swept.value)).filter(Boolean).sort((a, b) => a.x - b.x) })) }));
    const legend = make("div", { class: "families" }, ...families.map((family) => make("span", {}, swatch(looks[family]), family)));
    host.replaceChildren(legend, lines(host, panels, { log: values[0] > 0, ticks: values }));
  }
  function training(host) {
    const panels = data.training.map(({ condition, label, methods }) => ({ title: `${label}; ${condition}`, xLabel: "epoch", yLabel: label,
      series: methods.map(({ method, mean, seeds }) => ({ look: style(method), dotted: true, thin: seeds,
        points: mean.map(([x, value]) => ({ x, mean: value, half: null, tip: () => [data.methods[method].name, `epoch ${x}: ${number(value, 3)}, mean over ${seeds.length} seeds`] })) })) }));
    const seen = [...new Set(data.training.flatMap((panel) => panel.methods.map(({ method }) => method)))].sort((a, b) => a - b);
    const legend = make("div", { class: "families" }, ...seen.map((m) => make("span", {}, swatch(style(m)), data.methods[m].name)));
    host.replaceChildren(...(panels.length ? [legend, lines(host, panels)] : []));
  }

  // ---- the main figure and its controls ----
  const VIEWS = {
    differences: { label: `difference from ${data.methods[data.baseline].name}`, show: (host, q, shown) => dots(host, q, shown, true),
      note: "Mean difference over seeds, paired by seed, with its 95 % interval; small dots are seeds. Sorted within each condition." },
    means: { label: "means", show: (host, q, shown) => dots(host, q, shown, false),
      note: "Mean over seeds with its 95 % interval; small dots are seeds. Overlapping intervals do not show that two methods are equal: see the differences." },
    ratio: { label: "means against the ratio", show: againstRatio, note: "Means over seeds with 95 % intervals." },
  };
  const fields = [...new Set(data.methods.map((method) => method.swept?.field).filter(Boolean))];
  for (const field of fields) VIEWS[field] = { label: `means against ${field}`, show: (host, q, shown) => againstField(host, q, shown, field), note: "Means over seeds with 95 % intervals." };
  if (data.conditions.filter((condition) => condition.degree !== null).length > 1) {
    VIEWS.degree = { label: "means against the measured degree of imbalance", show: againstDegree,
      note: "Degree: the mean information imbalance (Glielmo et al., 2022) between the teachers' features of images and of their paired captions; 1 where neither predicts neighbours of the other." };
  }
  const state = { metric: data.choices[0], view: "differences", hidden: new Set() };
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (data.choices.includes(given.get("metric"))) state.metric = given.get("metric");
    if (given.get("view") in VIEWS) state.view = given.get("view");
    for (const name of given.getAll("hide")) state.hidden.add(data.methods.findIndex((method) => method.name === name));
  }
  function redraw() {
    const shown = data.methods.map((_, m) => m).filter((m) => !state.hidden.has(m));
    const host = at("chart");
    if (!data.choices.length) host.replaceChildren(make("p", { class: "missing" }, "No run is finished yet."));
    else VIEWS[state.view].show(host, state.metric, shown);
    at("chart-note").textContent = data.choices.length ? VIEWS[state.view].note : "";
    training(at("training"));
  }
  function change() {
    const given = new URLSearchParams({ metric: state.metric, view: state.view });
    for (const m of state.hidden) given.append("hide", data.methods[m].name);
    history.replaceState(null, "", `#${given}`);
    redraw();
  }
  readAddress();
  at("metric").append(...data.choices.map((key) => make("option", { value: key }, data.quantities[key].label)));
  at("view").append(...Object.entries(VIEWS).map(([key, view]) => make("option", { value: key }, view.label)));
  at("metric").value = state.metric ?? "";
  at("view").value = state.view;
  at("metric").addEventListener("change", () => { state.metric = at("metric").value; change(); });
  at("view").addEventListener("change", () => { state.view = at("view").value; change(); });
  at("methods-shown").append(...data.methods.map((method, m) => make("button", { class: "chip", title: method.description, "aria-pressed": String(!state.hidden.has(m)), click: (event) => {
    if (!state.hidden.delete(m)) state.hidden.add(m);
    event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(m)));
    change();
  } }, swatch(style(m)), method.name)));
  at("controls").hidden = !data.choices.length;

  // ---- examples: one at a time ----
  for (const image of document.querySelectorAll("img[data-picture]")) image.src = pictures[image.dataset.picture];
  const examples = [...document.querySelectorAll(".example")];
  let place = 0;
  function turn(step) {
    place = (place + step + examples.length) % examples.length;
    examples.forEach((example, i) => { example.hidden = i !== place; });
    at("place").textContent = `query ${place + 1} of ${examples.length}`;
  }
  if (examples.length) {
    at("pager").hidden = false;
    at("earlier").addEventListener("click", () => turn(-1));
    at("later").addEventListener("click", () => turn(1));
    turn(0);
  }

  // ---- folds, printing, and loading again while the study runs ----
  const folds = [...document.querySelectorAll(".fold")];
  at("training-section").addEventListener("toggle", () => training(at("training")));
  let closed = [];
  addEventListener("beforeprint", () => { closed = folds.filter((fold) => !fold.open); closed.forEach((fold) => { fold.open = true; }); training(at("training")); });
  addEventListener("afterprint", () => closed.forEach((fold) => { fold.open = false; }));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  if (at("running")) setInterval(() => { if (!at("runs-of").open) location.reload(); }, 10000);
  redraw();
})();
