"use strict";

const STEP = 24;
const RERANK = 50;
const START = "Type some words, or drop a picture anywhere on this page.";
const element = (id) => document.getElementById(id);

let info = { limits: { results: 200, upload_bytes: 20e6 } };
let query = null; // {words}, {like} (id of an image) or {file}
let k = STEP;
let newest = 0; // number of the last request: answers to earlier ones are dropped

const chosen = () => document.querySelector("input[name=in]:checked").value;
const canRerank = () => query !== null && chosen() === (query.words === undefined ? "captions" : "images");

function status(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function address() {
  const fields = new URLSearchParams();
  if (query.words !== undefined) fields.set("q", query.words);
  if (query.like !== undefined) fields.set("like", query.like);
  fields.set("in", chosen());
  return fields;
}

async function search() {
  if (query === null) return;
  const number = ++newest;
  const fields = address();
  fields.set("k", k);
  if (element("rerank").checked && canRerank()) fields.set("rerank", RERANK);
  element("results").classList.add("busy");
  status("Searching …");
  try {
    const options = query.file ? { method: "POST", body: query.file } : {};
    const answer = await fetch(`/api/search?${fields}`, options);
    const found = await answer.json();
    if (number !== newest) return;
    if (!answer.ok) throw new Error(found.error);
    show(found);
  } catch (error) {
    if (number !== newest) return;
    element("results").replaceChildren();
    element("more").hidden = true;
    status(error instanceof TypeError ? "The server does not answer." : error.message, true);
  } finally {
    if (number === newest) element("results").classList.remove("busy");
  }
}

function show(found) {
  element("results").replaceChildren(...found.hits.map(result));
  const count = found.hits.length;
  status(`${count} ${count === 1 ? "result" : "results"} in ${found.seconds < 0.1 ? "less than 0.1" : found.seconds.toFixed(1)} s`);
  element("more").hidden = count < k || k >= info.limits.results;
}

function node(name, kind, text) {
  const made = document.createElement(name);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function result(hit) {
  const item = document.createElement("li");
  const button = node("button", `hit ${hit.kind}`);
  button.type = "button";
  if (hit.picture === null) {
    button.append(node("span", "nothing", hit.image));
  } else {
    const picture = document.createElement("img");
    picture.src = hit.picture;
    picture.loading = "lazy";
    picture.alt = hit.captions[0] ?? hit.image;
    button.append(picture);
  }
  button.append(node("span", "text", hit.captions[0] ?? hit.id));
  const match = hit.match === null ? "" : ` · match ${hit.match.toFixed(2)}`;
  button.append(node("span", "score", `${hit.rank} · ${hit.score.toFixed(3)}${match}`));
  button.title = [hit.image, ...hit.captions, "Click to search with this image"].join("\n");
  button.addEventListener("click", () => ask({ like: hit.image, picture: hit.picture }));
  item.append(button);
  return item;
}

function ask(asked, remember = true) {
  query = asked;
  k = STEP;
  const isPicture = query.words === undefined;
  element("query").hidden = !isPicture;
  element("words").value = query.words ?? "";
  if (isPicture) {
    const picture = element("query-picture");
    if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
    picture.hidden = !query.file && !query.picture;
    if (query.file) picture.src = URL.createObjectURL(query.file);
    else if (query.picture) picture.src = query.picture;
    element("query-name").textContent = query.file ? query.file.name : query.like;
    scrollTo(0, 0);
  }
  if (remember) history.pushState(null, "", query.file ? "/" : `/?${address()}`);
  search();
}

function askFile(file) {
  if (!file) return;
  if (file.size > info.limits.upload_bytes) {
    status(`This picture has ${(file.size / 1e6).toFixed(1)} MB, more than ${info.limits.upload_bytes / 1e6} MB.`, true);
  } else {
    ask({ file });
  }
}

function clear() {
  newest++;
  query = null;
  element("query").hidden = true;
  element("more").hidden = true;
  element("words").value = "";
  element("results").replaceChildren();
  element("results").classList.remove("busy");
  status(START);
  element("words").focus();
}

function fromAddress() {
  const fields = new URLSearchParams(location.search);
  const within = document.querySelector(`input[name=in][value="${CSS.escape(fields.get("in") ?? "images")}"]`);
  if (within !== null && !within.disabled) within.checked = true;
  if (fields.get("q")) ask({ words: fields.get("q") }, false);
  else if (fields.get("like")) ask({ like: fields.get("like"), picture: `/image/${encodeURIComponent(fields.get("like"))}` }, false);
  else clear();
}

function move(event) {
  const hits = [...document.querySelectorAll(".hit")];
  const here = hits.indexOf(document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (here < 0 || step === undefined) return;
  hits[Math.min(Math.max(here + step, 0), hits.length - 1)].focus();
  event.preventDefault();
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = element("words").value.trim();
  if (words) ask({ words });
  else status("Type some words first.", true);
});
element("form").addEventListener("change", (event) => {
  if (event.target.id === "file") {
    askFile(event.target.files[0]);
    event.target.value = "";
  } else if (event.target.name === "in" || event.target.id === "rerank") {
    search();
  }
});
element("clear").addEventListener("click", () => {
  history.pushState(null, "", "/");
  clear();
});
element("more").addEventListener("click", () => {
  k = Math.min(k + STEP, info.limits.results);
  search();
});
addEventListener("popstate", fromAddress);
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== element("words")) {
    event.preventDefault();
    element("words").select();
  } else {
    move(event);
  }
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) element("drop").hidden = true;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").hidden = true;
  askFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => askFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));

async function begin() {
  try {
    info = await (await fetch("/api/info")).json();
  } catch {
    status("The server does not answer.", true);
    return;
  }
  document.title = `Search ${info.name}`;
  element("name").textContent = info.name;
  const numbers = [];
  if (info.images) numbers.push(`${info.images.toLocaleString("en")} images`);
  if (info.captions) numbers.push(`${info.captions.toLocaleString("en")} captions`);
  element("size").textContent = numbers.join(", ");
  for (const input of document.querySelectorAll("input[name=in]")) {
    input.disabled = input.value === "both" ? !info.images || !info.captions : !info[input.value];
  }
  document.querySelector("input[name=in]:enabled").checked = true;
  element("rerank-option").hidden = !info.can_rerank;
  fromAddress();
}
begin();
