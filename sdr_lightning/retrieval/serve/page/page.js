"use strict";

const STEP = 24;
const RERANK = 50;
const START = "Type some words, or choose, drop or paste a picture.";
const element = (id) => document.getElementById(id);

let info = { limits: { results: 200, upload_bytes: 20e6 } };
let query = null; // {words}, {like} (id of an image) or {file}
let k = STEP;
let newest = 0; // number of the last request: answers to earlier ones are dropped

const chosen = () => document.querySelector("input[name=in]:checked").value;
const isPicture = () => query !== null && query.words === undefined;
const reranks = () => element("rerank").checked && !element("rerank").disabled;

function status(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function address() {
  const fields = new URLSearchParams();
  if (query.words !== undefined) fields.set("q", query.words);
  if (query.like !== undefined) fields.set("like", query.like);
  fields.set("in", chosen());
  if (reranks()) fields.set("rerank", RERANK);
  return fields;
}

/** Re-ranking scores words with images, or a picture with captions: switch it off elsewhere. */
function updateOptions() {
  element("rerank").disabled = chosen() !== (isPicture() ? "captions" : "images");
}

/** Search; with the keyboard on a result or on "Show more", go on at the result of a rank (from 0). */
async function search(rank = 0) {
  if (query === null) return;
  const number = ++newest;
  const fields = address();
  fields.set("k", k);
  element("results").classList.add("busy");
  status("Searching …");
  try {
    const options = query.file ? { method: "POST", body: query.file } : {};
    const answer = await fetch(`/api/search?${fields}`, options);
    const found = await answer.json();
    if (number !== newest) return;
    if (!answer.ok) throw new Error(found.error);
    show(found, rank);
  } catch (error) {
    if (number !== newest) return;
    element("results").replaceChildren();
    element("more").hidden = true;
    status(error instanceof TypeError ? "The server does not answer." : error.message, true);
  } finally {
    if (number === newest) element("results").classList.remove("busy");
  }
}

function show(found, rank) {
  const hadFocus = element("results").contains(document.activeElement) || document.activeElement === element("more");
  element("results").replaceChildren(...found.hits.map((hit) => result(hit, found.in === "both")));
  const count = found.hits.length;
  const order = found.hits[0]?.match == null ? "by cosine" : "by cosine, the first ones by match";
  const seconds = found.seconds < 0.1 ? "less than 0.1" : found.seconds.toFixed(1);
  status(`${count} ${count === 1 ? "result" : "results"} ${order}, in ${seconds} s`);
  element("more").hidden = count < k || k >= info.limits.results;
  if (hadFocus) element("results").children[rank]?.firstChild.focus({ preventScroll: rank === 0 });
}

function node(name, kind, text) {
  const made = document.createElement(name);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Show the pixels of a tiny picture instead of blurring them. */
function sharpen(event) {
  event.target.classList.toggle("tiny", event.target.naturalWidth < 100);
}

function result(hit, showKind) {
  const item = document.createElement("li");
  const button = node("button", `hit ${hit.kind}`);
  button.type = "button";
  if (hit.picture === null) {
    button.append(node("span", "nothing", hit.image));
  } else {
    const picture = document.createElement("img");
    picture.src = hit.picture;
    picture.loading = "lazy";
    picture.alt = ""; // the text below says it
    picture.addEventListener("load", sharpen);
    picture.addEventListener("error", () => picture.replaceWith(node("span", "nothing", "The picture cannot be shown.")));
    button.append(picture);
  }
  button.append(node("span", "text", hit.captions[0] ?? hit.id));
  const match = hit.match === null ? "" : ` · match ${hit.match.toFixed(2)}`;
  const kind = showKind ? ` · ${hit.kind}` : "";
  button.append(node("span", "score", `${hit.rank}${kind} · cosine ${hit.score.toFixed(3)}${match}`));
  button.title = [hit.image, ...hit.captions, "Click to search with this image"].join("\n");
  button.addEventListener("click", () => ask({ like: hit.image, picture: hit.picture }));
  item.append(button);
  return item;
}

function ask(asked, remember = true) {
  query = asked;
  k = STEP;
  updateOptions();
  element("query").hidden = !isPicture();
  element("words").value = query.words ?? "";
  if (isPicture()) {
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
  updateOptions();
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
  element("rerank").checked = fields.has("rerank");
  if (fields.get("q")) ask({ words: fields.get("q") }, false);
  else if (fields.get("like")) ask({ like: fields.get("like"), picture: `/image/${encodeURIComponent(fields.get("like"))}` }, false);
  else clear();
}

function move(event) {
  const hits = [...document.querySelectorAll(".hit")];
  const here = hits.indexOf(document.activeElement);
  const columns = hits.filter((hit) => hit.offsetTop === hits[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (here < 0 || step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
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
    k = STEP;
    updateOptions();
    if (query !== null && !query.file) history.replaceState(null, "", `/?${address()}`);
    search();
  }
});
element("clear").addEventListener("click", () => {
  history.pushState(null, "", "/");
  clear();
});
element("more").addEventListener("click", () => {
  const before = k;
  k = Math.min(k + STEP, info.limits.results);
  search(before);
});
element("query-picture").addEventListener("load", sharpen);
element("query-picture").addEventListener("error", () => {
  element("query-picture").hidden = true;
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
  element("drop").hidden = !event.dataTransfer.types.includes("Files");
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
  document.querySelector("fieldset").hidden = !info.images || !info.captions; // one choice is none
  element("rerank-option").hidden = !info.can_rerank;
  fromAddress();
}
begin();
