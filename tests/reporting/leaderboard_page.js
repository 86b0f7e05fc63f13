// Runs the script of a leaderboard with a document that holds what it needs, and prints what a reader sees as JSON.
// node leaderboard_page.js SCRIPT DATA.json ACTIONS.json; actions: [["filter", name, value], ["sort", column], ...]
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

const [, , script, dataFile, actionsFile] = process.argv, nodes = {};
global.document = {
  createElement: tag => new Node(tag),
  getElementById: id => nodes[id] ??= new Node(id),
};
document.getElementById("data").textContent = readFileSync(dataFile, "utf8");
require(script).start();
for (const [what, name, value] of JSON.parse(readFileSync(actionsFile, "utf8"))) {
  if (what === "filter") {
    const select = nodes.filters.children.find(label => label.own === name).children[0];
    if (!select.children.some(option => option.value === value)) throw Error(`no choice ${value} of ${name}`);
    select.value = value;
    select.listeners.change();
  } else nodes.heads.children.find(head => head.attributes["aria-sort"] && head.textContent === name).children[0].listeners.click();
}
console.log(JSON.stringify({
  count: nodes.count.textContent,
  sorted: Object.fromEntries(nodes.heads.children.map(head => [head.textContent, head.attributes["aria-sort"]])),
  filters: Object.fromEntries(nodes.filters.children.map(label => [label.own, label.children[0].children.map(option => option.textContent)])),
  rows: nodes.rows.children.map(row => row.children.map(cell => cell.textContent)),
  links: nodes.rows.children.map(row => row.all("a").map(link => link.href)),
}));
