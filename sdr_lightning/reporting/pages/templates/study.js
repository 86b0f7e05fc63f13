// The page of a study: its main figure, the runs behind each number, training curves and examples.
(() => {
  const { make, swatch, showTip, hideTip } = charts;
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent), pictures = JSON.parse(at("pictures").textContent);
  const MARKS = { higher: "▲", lower: "▼", undecided: "○" };

  // ---- numbers as text ----
  const number = (value, decimals) => value.toFixed(decimals).replace(/^-(0(\.0*)?)$/, "$1").replace("-", "−");
  const signed = (value, decimals) => (Number(value.toFixed(decimals)) > 0 ? "+" : "") + number(value, decimals);
  function bounds({ mean, half }, decimals) {
    return half === null ? "" : `[${(mean - half).toFixed(decimals)}, ${(mean + half).toFixed(decimals)}]`.replaceAll("-", "−");
  }
  const nameOf = (method) => data.methods[method].name;
  const labelOf = (condition) => data.conditions[condition].label;

  // ---- methods look the same everywhere ----
  const others = data.methods.map((_, i) => i).filter((i) => i !== data.baseline && i !== data.candidate);
  const paletteLook = (place) => ({ colour: `var(--method-${place % 6})`, shape: 1 + (place % 7) });
  function look(method) {
    if (method === data.baseline) return { colour: "var(--ink)", shape: 0 };
    if (method === data.candidate) return { colour: "var(--candidate)", shape: 0 };
    return paletteLook(others.indexOf(method));
  }

  // ---- what is known of a method under a condition ----
  const cellOf = (quantity, method, condition) => data.cells[quantity]?.[method][condition] ?? null;
  function differences(found, base) {
    const shared = Object.keys(found.values).filter((seed) => seed in base.values);
    return Object.fromEntries(shared.map((seed) => [seed, found.values[seed] - base.values[seed]]));
  }
  function differenceText(method, difference, q) {
    const base = nameOf(data.methods[method].baseline);
    const interval = bounds(difference, q.differenceDecimals);
    return `minus ${base}: ${signed(difference.mean, q.differenceDecimals)} ${interval}, ${difference.verdict}`;
  }
  function describe(quantity, method, condition) {
    const found = cellOf(quantity, method, condition), q = data.quantities[quantity];
    const seeds = Object.entries(found.values).map(([seed, value]) => `${seed}: ${number(value, q.decimals)}`);
    return [
      `${nameOf(method)}, ${labelOf(condition)}`,
      `${q.label}: ${number(found.mean, q.decimals)} ${bounds(found, q.decimals)}`,
      ...(found.difference ? [differenceText(method, found.difference, q)] : []),
      `seeds ${seeds.slice(0, 10).join(", ")}${seeds.length > 10 ? ", …" : ""}`,
      "Click for its runs.",
    ];
  }

  // ---- dialog: the runs behind a number ----
  function showRuns(quantity, method, condition) {
    const found = cellOf(quantity, method, condition), q = data.quantities[quantity];
    const { description, baseline } = data.methods[method];
    hideTip();
    at("runs-title").textContent = `${nameOf(method)}, ${labelOf(condition)}: ${q?.label ?? quantity}`;
    if (!found) {
      at("runs-content").replaceChildren(make("p", {}, "No run yet."));
      return at("runs-of").showModal();
    }
    const values = Object.keys(found.values).length;
    const mean = `Mean over ${values} seeds: ${number(found.mean, q.decimals)} ${bounds(found, q.decimals)}`;
    const difference = found.difference ? `; ${differenceText(method, found.difference, q)}` : "";
    const base = baseline === method ? null : cellOf(quantity, baseline, condition);
    const byDifference = base ? differences(found, base) : {};
    const runs = data.runs[method][condition].filter((run) => run.seed in found.values);
    const detail = make("div");
    const rows = runs.map((run) => make("tr", { click: () => choose(run) },
      make("th", {}, String(run.seed)),
      make("td", {}, number(found.values[run.seed], q.decimals + 1)),
      base && make("td", {}, run.seed in byDifference ? signed(byDifference[run.seed], q.differenceDecimals) : "–"),
      make("td", {}, String(run.epoch ?? "–")),
      make("td", {}, run.commit)));
    function choose(run) {
      rows.forEach((row, i) => row.classList.toggle("chosen", runs[i] === run));
      detail.replaceChildren(...describeRun(run));
    }
    const heads = ["Seed", "Value", ...(base ? [`minus ${nameOf(baseline)}`] : []), "Epoch", "Commit"];
    const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", {}, text))));
    at("runs-content").replaceChildren(
      make("p", {}, `${mean}${difference}.`),
      description ? make("p", {}, `${nameOf(method)}: ${description}`) : "",
      make("div", { class: "scroll" }, make("table", { class: "numeric" }, head, make("tbody", {}, ...rows))),
      detail);
    if (runs.length) choose(runs[0]);
    at("runs-of").showModal();
  }
  function describeRun(run) {
    const address = (file) => encodeURI(`${run.folder}/${file}`).replaceAll("#", "%23");
    const links = run.files.flatMap((file, i) => [i ? ", " : ": ", make("a", { href: address(file) }, file)]);
    const options = Object.entries(run.options).map(([option, value]) => `${option} ${JSON.stringify(value)}`);
    return [
      make("p", {}, make("b", {}, `Seed ${run.seed}`), `, ${run.folder}`, ...links),
      ...(options.length ? [make("p", {}, `Chosen options: ${options.join(", ")}`)] : []),
      ...(run.files.includes("config.yaml") ? [make("p", {}, "Train it again, and test it:"), make("pre", {}, commands(run))] : []),
    ];
  }
  function commands(run) {
    const folder = location.protocol === "file:" ? decodeURIComponent(location.pathname).replace(/[^/]*$/, "") : "";
    const path = `${folder}${run.folder}/config.yaml`;
    const config = /[^\w./-]/.test(path) ? `'${path.replaceAll("'", "'\\''")}'` : path;
    return `sdr fit --config ${config} --run_dir runs/again
sdr test --config ${config} --run_dir runs/again --ckpt_path runs/again/checkpoints/best.ckpt`;
  }
  document.addEventListener("click", (event) => {
    const key = event.target.closest("button[data-runs]")?.dataset.runs;
    if (!key) return;
    const [quantity, name, label] = key.split("|");
    const method = data.methods.findIndex((m) => m.name === name);
    showRuns(quantity, method, data.conditions.findIndex((c) => c.label === label));
  });
  at("runs-of").addEventListener("click", (event) => { if (event.target === at("runs-of")) at("runs-of").close(); });

  // ---- views of the main figure: dots with intervals, one row a method, grouped by condition ----
  function dotsOf(quantity, method, condition, ofDifferences) {
    const found = cellOf(quantity, method, condition);
    if (!found || (ofDifferences && !found.difference)) return null;
    const base = ofDifferences ? cellOf(quantity, data.methods[method].baseline, condition) : null;
    const seeds = Object.values(base ? differences(found, base) : found.values);
    return { method, condition, seeds, ...(base ? found.difference : found) };
  }
  function dots(host, quantity, shown, ofDifferences) {
    const groups = data.conditions
      .map((_, c) => shown.map((m) => dotsOf(quantity, m, c, ofDifferences)).filter(Boolean).sort((a, b) => b.mean - a.mean))
      .filter((rows) => rows.length);
    if (!groups.length) return host.replaceChildren(make("p", { class: "missing" }, "No run has these numbers yet."));
    const values = groups.flatMap((rows) => [...charts.ends(rows), ...rows.flatMap((row) => row.seeds)]);
    const [low, high] = charts.padded(ofDifferences ? [...values, 0] : values);
    const place = (value) => `${(100 * (value - low)) / (high - low)}%`;
    const ticks = charts.ticksBetween(low, high, innerWidth < 720 ? 4 : 7);
    const axis = (plot) => make("div", { class: "row axis", "aria-hidden": "true" },
      make("span", { class: "label" }), plot, make("span", { class: "number" }));
    const scale = () => axis(make("div", { class: "plot" },
      ...ticks.map((tick) => make("span", { style: `left: ${place(tick)}` }, charts.tickText(tick)))));
    const sides = axis(make("div", { class: "sides" },
      make("span", {}, `◂ lower than ${nameOf(data.baseline)}`), make("span", {}, "higher ▸")));
    const drawn = groups.map((rows) => make("div", { class: "group" },
      make("h3", {}, labelOf(rows[0].condition)),
      ...rows.map((row) => dotRow(quantity, row, { place, ticks, low, high, ofDifferences }))));
    host.replaceChildren(...(ofDifferences ? [sides] : []), scale(), ...drawn, scale());
  }
  function dotRow(quantity, row, { place, ticks, low, high, ofDifferences }) {
    const q = data.quantities[quantity], decimals = ofDifferences ? q.differenceDecimals : q.decimals;
    const { colour } = look(row.method), open = [quantity, row.method, row.condition];
    const text = ofDifferences ? signed(row.mean, decimals) : number(row.mean, decimals);
    const mark = ofDifferences ? make("span", { class: `mark ${row.verdict}` }, `${MARKS[row.verdict]} `) : null;
    const interval = `left: ${place(row.mean - row.half)}; width: ${(200 * row.half) / (high - low)}%; background: ${colour}`;
    const lines = ticks.map((tick) => make("i", {
      class: ofDifferences && tick === 0 ? "line zero" : "line", style: `left: ${place(tick)}` }));
    const seeds = row.seeds.map((value) => make("i", { class: "seed", style: `left: ${place(value)}; background: ${colour}` }));
    return make("div", {
      class: row.method === data.candidate ? "row leading" : "row",
      pointermove: (event) => showTip(event, describe(...open)),
      pointerleave: hideTip,
      click: (event) => { if (!event.target.closest("button")) showRuns(...open); },
    },
    make("span", { class: "label" }, swatch(look(row.method)), nameOf(row.method)),
    make("div", { class: "plot" }, ...lines, row.half === null ? null : make("i", { class: "interval", style: interval }), ...seeds,
      swatch(look(row.method), { style: `left: ${place(row.mean)}` })),
    make("span", { class: "number" }, mark,
      make("button", { class: "value", "data-runs": [quantity, nameOf(row.method), labelOf(row.condition)].join("|") }, text),
      " ", make("span", { class: "detail" }, bounds(row, decimals))));
  }

  // ---- views of the main figure: lines against the ratio, the measured degree, or a swept field ----
  function point(quantity, method, condition, x) {
    const found = cellOf(quantity, method, condition), open = [quantity, method, condition];
    return found && { x, mean: found.mean, half: found.half, click: () => showRuns(...open), tip: () => describe(...open) };
  }
  function againstRatio(host, quantity, shown) {
    const percent = (c) => Number((100 * data.conditions[c].ratio).toPrecision(6));
    const panels = data.curves.map(({ imbalance, conditions }) => ({
      title: imbalance,
      xLabel: "% of the training data",
      yLabel: data.quantities[quantity].label,
      ticks: conditions.map(percent),
      series: shown.map((m) => ({ look: look(m), points: conditions.map((c) => point(quantity, m, c, percent(c))).filter(Boolean) })),
    }));
    const all = panels.flatMap((panel) => panel.series.flatMap((series) => series.points));
    const range = all.length ? charts.padded(charts.ends(all)) : null;
    host.replaceChildren(charts.lines(host.clientWidth, panels.map((panel) => ({ ...panel, range }))));
  }
  function againstDegree(host, quantity, shown) {
    const known = data.conditions.map(({ degree }, c) => [degree, c]).filter(([degree]) => degree !== null);
    const series = shown.map((m) => ({
      look: look(m), dotted: true, points: known.map(([degree, c]) => point(quantity, m, c, degree)).filter(Boolean) }));
    const panel = { title: "all conditions", xLabel: "measured degree of imbalance", yLabel: data.quantities[quantity].label, series };
    host.replaceChildren(charts.lines(host.clientWidth, [panel], { height: 340 }));
  }
  function againstField(host, quantity, shown, field) {
    const members = shown.filter((m) => data.methods[m].swept?.field === field);
    const swept = (m) => data.methods[m].swept;
    const families = [...new Set(members.map((m) => swept(m).family))];
    const looks = families.map((family, i) => {
      const role = [data.candidate, data.baseline].find((m) => swept(m)?.family === family);
      return role === undefined ? paletteLook(i) : look(role);
    });
    const values = [...new Set(members.map((m) => swept(m).value))].sort((a, b) => a - b);
    const panels = data.conditions.map((condition, c) => ({
      title: condition.label,
      xLabel: field,
      yLabel: data.quantities[quantity].label,
      ticks: values,
      series: families.map((family, i) => {
        const own = members.filter((m) => swept(m).family === family).sort((a, b) => swept(a).value - swept(b).value);
        return { look: looks[i], points: own.map((m) => point(quantity, m, c, swept(m).value)).filter(Boolean) };
      }),
    }));
    const legend = families.map((family, i) => make("span", {}, swatch(looks[i]), family));
    host.replaceChildren(make("div", { class: "families" }, ...legend), charts.lines(host.clientWidth, panels, { log: values[0] > 0 }));
  }

  // ---- the main figure and its controls ----
  const WITH_INTERVALS = "Means over seeds with 95 % intervals.";
  const VIEWS = {
    differences: {
      label: `difference from ${nameOf(data.baseline)}`,
      show: (host, quantity, shown) => dots(host, quantity, shown, true),
      note: "Mean difference over seeds, paired by seed, with its 95 % interval; small dots are seeds. Sorted within each condition.",
    },
    means: {
      label: "means",
      show: (host, quantity, shown) => dots(host, quantity, shown, false),
      note: "Mean over seeds with its 95 % interval; small dots are seeds. Whether two methods differ is seen from their difference.",
    },
    ratio: { label: "means against the ratio", show: againstRatio, note: WITH_INTERVALS },
  };
  for (const field of new Set(data.methods.map((method) => method.swept?.field).filter(Boolean))) {
    const show = (host, quantity, shown) => againstField(host, quantity, shown, field);
    VIEWS[field] = { label: `means against ${field}`, show, note: WITH_INTERVALS };
  }
  if (data.conditions.filter((condition) => condition.degree !== null).length > 1) {
    VIEWS.degree = {
      label: "means against the measured degree of imbalance",
      show: againstDegree,
      note: "Degree: the mean information imbalance (Glielmo et al., 2022) between the teachers' features of images and of their " +
        "paired captions; 1 where neither predicts neighbours of the other.",
    };
  }
  const hasDifferences = data.cells[data.choices[0]]?.some((cells) => cells.some((cell) => cell?.difference));
  const state = { metric: data.choices[0] ?? "", view: hasDifferences ? "differences" : "means", hidden: new Set() };
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (data.choices.includes(given.get("metric"))) state.metric = given.get("metric");
    if (given.get("view") in VIEWS) state.view = given.get("view");
    data.methods.forEach((method, m) => { if (given.getAll("hide").includes(method.name)) state.hidden.add(m); });
  }
  function writeAddress() {
    const given = new URLSearchParams({ metric: state.metric, view: state.view });
    for (const m of state.hidden) given.append("hide", nameOf(m));
    history.replaceState(null, "", `#${given}`);
  }
  function redraw() {
    training();
    const shown = data.methods.map((_, m) => m).filter((m) => !state.hidden.has(m));
    if (!data.choices.length) return at("chart").replaceChildren(make("p", { class: "missing" }, "No run is finished yet."));
    VIEWS[state.view].show(at("chart"), state.metric, shown);
    at("chart-note").textContent = VIEWS[state.view].note;
  }
  function choice(id, options) {
    at(id).append(...options.map(([value, label]) => make("option", { value }, label)));
    at(id).value = state[id];
    at(id).addEventListener("change", () => {
      state[id] = at(id).value;
      writeAddress();
      redraw();
    });
  }
  function chip(m) {
    const pressed = () => String(!state.hidden.has(m));
    const button = make("button", { class: "chip", title: data.methods[m].description, "aria-pressed": pressed() },
      swatch(look(m)), nameOf(m));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(m)) state.hidden.add(m);
      button.setAttribute("aria-pressed", pressed());
      writeAddress();
      redraw();
    });
    return button;
  }
  readAddress();
  choice("metric", data.choices.map((key) => [key, data.quantities[key].label]));
  choice("view", Object.entries(VIEWS).map(([key, view]) => [key, view.label]));
  at("methods-shown").append(...data.methods.map((_, m) => chip(m)));
  at("controls").hidden = !data.choices.length;

  // ---- training curves ----
  function training() {
    const host = at("training");
    const panels = data.training.map(({ condition, label, methods }) => ({
      title: `${label}; ${condition}`,
      xLabel: "epoch",
      yLabel: label,
      series: methods.map(({ method, mean, seeds }) => ({
        look: look(method), bare: true, thin: seeds,
        points: mean.map(([x, value]) => ({
          x, mean: value, tip: () => [nameOf(method), `epoch ${x}: ${number(value, 3)}, mean over ${seeds.length} seeds`] })),
      })),
    }));
    if (!panels.length || !host.clientWidth) return;
    const seen = new Set(data.training.flatMap((panel) => panel.methods.map(({ method }) => method)));
    const legend = [...seen].sort((a, b) => a - b).map((m) => make("span", {}, swatch(look(m)), nameOf(m)));
    host.replaceChildren(make("div", { class: "families" }, ...legend), charts.lines(host.clientWidth, panels));
  }
  at("training-section").addEventListener("toggle", training);

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

  // ---- printing opens all folds; a running study is loaded again ----
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".fold:not([open])")];
    opened.forEach((fold) => { fold.open = true; });
    training();
  });
  addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) redraw();
    width = innerWidth;
  });
  if (at("running")) setInterval(() => { if (!at("runs-of").open) location.reload(); }, 10000);
  redraw();
})();
