// Runs the script of a leaderboard with a document that holds what it needs, once for each list of actions, and prints what a
// reader then sees as JSON: node leaderboard_page.js SCRIPT DATA.json '[[["filter", NAME, VALUE], ["sort", COLUMN], ...], ...]'
"use strict";
const {readFileSync} = require("fs");

class Node {
  constructor(tag) { this.tag = tag; this.children = []; this.listeners = {}; this.attributes = {}; this.own = ""; }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.children = parts; }
  addEventListener(name, run) { this.listeners[name] = run; }
  setAttribute(name, value) { this.attributes[name] = value; }
  get textContent() { return this.own + this.children.map(part => part instanceof Node ? part.textContent : String(part)).join(""); }
  set textContent(text) { this.own = text; this.children = []; }
  all(tag) { return this.children.flatMap(part => part instanceof Node ? [...(part.tag === tag ? [part] : []), ...part.all(tag)] : []); }
}

const [, , script, dataFile, scenarios] = process.argv;
const page = require(script);

function after(actions) {
  const nodes = {};
  global.document = {createElement: tag => new Node(tag), getElementById: id => nodes[id] ??= new Node(id)};
  document.getElementById("data").textContent = readFileSync(dataFile, "utf8");
  page.start();
  for (const [what, name, value] of actions) {
    if (what === "filter") {
      const select = nodes.filters.children.find(label => label.own === name).children[0];
      if (!select.children.some(option => option.value === value)) throw Error(`no choice ${value} of ${name}`);
      select.value = value;
      select.listeners.change();
    } else nodes.heads.children.find(head => head.textContent === name).children[0].listeners.click();
  }
  const filters = nodes.filters.children.map(label => [label.own, label.children[0].children.map(option => option.textContent)]);
  return {
    count: nodes.count.textContent,
    sorted: Object.fromEntries(nodes.heads.children.map(head => [head.textContent, head.attributes["aria-sort"]])),
    filters: Object.fromEntries(filters),
    rows: nodes.rows.children.map(row => row.children.map(cell => cell.textContent)),
    links: nodes.rows.children.map(row => row.all("a").map(link => link.href)),
  };
}

console.log(JSON.stringify(JSON.parse(scenarios).map(after)));
