"use strict";
// The leaderboard's table. The functions before `start` are pure; tests run them without a page.

const FILTERS = ["data", "noise", "ratio", "method", "study", "tuning"];
const COLUMNS = [
  {key: "method", label: "Method", value: row => row.method},
  {key: "study", label: "Study", value: row => row.study},
  {key: "noise", label: "Noise of the training data", value: row => row.noise},
  {key: "ratio", label: "Ratio", value: row => row.ratio},
  {key: "mean", label: "Mean [95 %]", value: (row, metric) => row.scores[metric] ? row.scores[metric].mean[0] : null},
  {key: "difference", label: "Minus baseline [95 %]", value: (row, metric) => difference(row, metric) ? difference(row, metric)[0] : null},
  {key: "cost", label: "Cost, InfoNCE = 1", value: row => row.cost},
  {key: "seeds", label: "Runs by seed", value: row => row.seeds},
  {key: "tuning", label: "Tuning", value: row => row.tuning},
  {key: "configuration", label: "Configuration", value: row => row.configuration.map(link => link.text).join(" + ")},
  {key: "data", label: "Data", value: row => row.data},
];

function difference(row, metric) {
  return row.scores[metric] ? row.scores[metric].difference : null;
}

/** The text of a filter's value in a row. */
function textOf(row, name) {
  if (name !== "ratio") return row[name];
  return row.ratio === null ? "not stated" : `${+(100 * row.ratio).toFixed(2)} %`;
}

/** Values of a filter in the order of the rows; ratios in ascending order. */
function choices(rows, name) {
  const ordered = name === "ratio" ? [...rows].sort((a, b) => compare(a.ratio, b.ratio, 1)) : rows;
  return [...new Set(ordered.map(row => textOf(row, name)))];
}

/** The rows that pass all filters; an empty filter passes everything. Rows without the metric are left out. */
function visible(rows, wanted, metric) {
  return rows.filter(row => row.scores[metric] !== undefined && FILTERS.every(name => !wanted[name] || textOf(row, name) === wanted[name]));
}

/** Order of two values; missing ones are last in both directions. */
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true}));
}

/** The rows in the order of a column; equal ones keep their order. */
function ordered(rows, key, metric, direction) {
  const column = COLUMNS.find(each => each.key === key);
  return [...rows].sort((a, b) => compare(column.value(a, metric), column.value(b, metric), direction));
}

/** A number with a typographic minus sign, without negative zero. */
function number(value, decimals) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
}

function signed(value, decimals) {
  return value > 0 && Number(value.toFixed(decimals)) !== 0 ? `+${number(value, decimals)}` : number(value, decimals);
}

/** An interval; a bound that rounds to 0 keeps its sign, which decides the verdict. */
function bounds([, low, high], decimals) {
  return low === null ? "" : `[${low.toFixed(decimals)}, ${high.toFixed(decimals)}]`.replaceAll("-", "\u2212");
}

function verdict([, low, high]) {
  if (low === 0 && high === 0) return "identical";
  return low === null ? "undecided" : low > 0 ? "higher" : high < 0 ? "lower" : "undecided";
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = {metric: Object.keys(data.metrics)[0], wanted: {}, sort: null, direction: 1};
  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const linked = (link, text) => {
    if (link === undefined || link.href === null) return make("span", text);
    const node = make("a", text);
    node.href = link.href;
    return node;
  };
  const addLinks = (cell, links, between) => links.forEach((link, i) => {
    if (i) cell.append(between);
    cell.append(linked(link, link.text));
  });
  const fillers = {
    method: (cell, row) => cell.append(row.method, ...(row.isBaseline ? [" ", make("span", "baseline", "detail")] : [])),
    ratio: (cell, row) => cell.append(textOf(row, "ratio")),
    mean: (cell, row) => {
      const {decimals} = data.metrics[state.metric], {mean} = row.scores[state.metric];
      cell.append(linked(row.records[0], number(mean[0], decimals)), " ", make("span", bounds(mean, decimals) || `n=${row.seeds}`, "detail"));
    },
    difference: (cell, row) => {
      const found = difference(row, state.metric), {differenceDecimals} = data.metrics[state.metric];
      if (!found) return cell.append("\u2013");
      const outcome = verdict(found);
      cell.append(signed(found[0], differenceDecimals), " ", make("span", bounds(found, differenceDecimals), "detail"), " ");
      cell.append(make("span", outcome, `verdict ${outcome}`));
    },
    cost: (cell, row) => cell.append(row.cost === null ? "\u2013" : number(row.cost, 2)),
    seeds: (cell, row) => { cell.append(`${row.seeds}: `); addLinks(cell, row.records, " "); },
    configuration: (cell, row) => {
      addLinks(cell, row.configuration, " + ");
      if (!row.options && !row.command) return;
      const more = make("details");
      more.append(make("summary", "options and command"));
      if (row.options) more.append(make("p", `chosen: ${row.options}`));
      if (row.command) more.append(make("code", row.command));
      cell.append(more);
    },
    data: (cell, row) => cell.append(row.data, " ", make("span", row.student, "detail")),
  };
  const body = document.getElementById("rows"), count = document.getElementById("count");
  const heads = {};
  const draw = () => {
    const some = visible(data.rows, state.wanted, state.metric);
    const rows = state.sort ? ordered(some, state.sort, state.metric, state.direction) : some;
    body.replaceChildren(...rows.map(row => {
      const line = make("tr");
      COLUMNS.forEach(({key}, i) => {
        const cell = make(i ? "td" : "th", undefined, `column-${key}`);
        if (!i) cell.scope = "row";
        if (fillers[key]) fillers[key](cell, row); else cell.append(row[key]);
        line.append(cell);
      });
      return line;
    }));
    count.textContent = `${rows.length} of ${data.rows.length} rows, ${data.metrics[state.metric] ? data.metrics[state.metric].label : "no metric"}`;
    for (const key in heads) heads[key].setAttribute("aria-sort", state.sort !== key ? "none" : state.direction > 0 ? "ascending" : "descending");
  };
  const addFilter = (name, values, all, change) => {
    const label = make("label", name), select = make("select");
    if (all) { const option = make("option", "all"); option.value = ""; select.append(option); }
    for (const [value, text] of values) { const option = make("option", text); option.value = value; select.append(option); }
    select.addEventListener("change", () => { change(select.value); draw(); });
    label.append(select);
    document.getElementById("filters").append(label);
  };
  addFilter("metric", Object.entries(data.metrics).map(([key, {label}]) => [key, label]), false, value => { state.metric = value; });
  for (const name of FILTERS)
    addFilter(name, choices(data.rows, name).map(value => [value, value]), true, value => { state.wanted[name] = value; });
  const top = document.getElementById("heads");
  for (const {key, label} of COLUMNS) {
    const head = make("th", undefined, `column-${key}`), button = make("button", label);
    head.scope = "col";
    button.type = "button";
    button.addEventListener("click", () => {  // best first, then the other direction
      state.direction = state.sort === key ? -state.direction : key === "mean" || key === "difference" ? -1 : 1;
      state.sort = key;
      draw();
    });
    head.append(button);
    heads[key] = head;
    top.append(head);
  }
  draw();
}

if (typeof module !== "undefined") module.exports = {choices, compare, number, ordered, signed, start, verdict, visible};
else start();
