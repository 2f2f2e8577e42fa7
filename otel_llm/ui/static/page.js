// What the pages do beyond links and forms: live arrival, keys, the theme, columns, search in a trace, completion of SQL.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- light or dark
$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("otel-llm-theme", root.dataset.theme); } catch { /* storage may be off */ }
});

// --- live: a hint says that something is new; the page asks for it, at most once in a while, and only while somebody looks
const liveState = $("#live-state");
if (document.body.dataset.live) {
  let pending = false, asked = 0, took = 0, busy = 0, again = false;
  const say = (text) => { if (liveState.textContent !== text) { liveState.textContent = text; liveState.dataset.state = text; } };
  const refresh = () => {
    pending = false;
    asked = Date.now();
    $$("[data-on-calls]").forEach((element) => htmx.trigger(element, "calls"));
    if ($("[data-refresh]")) reloadMain();
  };
  const news = () => {
    if (document.hidden) { missed = true; return; }
    // While an answer is on its way it is not asked again, but after: what is asked with an element that goes would be lost.
    if (busy) { again = true; return; }
    if (pending) return;
    pending = true;
    // A server that has much to do is asked less often.
    setTimeout(refresh, Math.max(50, Math.max(400, 1.5 * took) - (Date.now() - asked)));
  };
  document.addEventListener("htmx:beforeRequest", ({ detail: { elt, xhr } }) => {
    if (!elt.matches("[data-on-calls]")) return;
    busy += 1;
    xhr.addEventListener("loadend", () => {  // events of the element itself go nowhere once it is gone
      busy -= 1;
      took = Date.now() - asked;
      if (again) { again = false; news(); }
    });
  });
  let missed = false;
  document.addEventListener("visibilitychange", () => { if (!document.hidden && missed) { missed = false; news(); } });
  const hear = (word) => { if (word === "calls") news(); else say(word); };
  if (window.SharedWorker) {
    const { port } = new SharedWorker(document.body.dataset.liveScript, { name: document.body.dataset.live });
    port.onmessage = ({ data }) => hear(data);
    addEventListener("pagehide", () => port.postMessage("bye"));
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  } else {
    const source = new EventSource(document.body.dataset.live);
    source.addEventListener("hello", () => hear("live"));
    source.addEventListener("calls", () => hear("calls"));
    source.addEventListener("error", () => hear("not connected"));
  }
  // A running call has no end to tell of its seconds: it is looked at again now and then.
  setInterval(() => { if ($("#running tr")) news(); }, 5000);
}

async function reloadMain() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  if (fresh) { $("main").replaceChildren(...fresh.childNodes); htmx.process($("main")); }
}

// --- the table of calls: each call once, and no more rows than one looks at
const MOST_ROWS = 1000;
document.addEventListener("htmx:oobBeforeSwap", ({ detail: { target, fragment } }) => {
  if (target.id !== "rows") return;
  const known = new Set($$("#rows [data-call]").map((row) => row.dataset.call));
  $$("[data-call]", fragment).forEach((row) => { if (known.has(row.dataset.call)) row.remove(); });
});
document.addEventListener("htmx:afterSettle", () => {
  const body = $("#rows"), known = new Set(), rows = [];
  $$("#rows [data-call]").forEach((row) => {
    if (known.has(row.dataset.call)) row.remove();
    else rows.push(row);
    known.add(row.dataset.call);
  });
  // Not while one looks at what would go.
  if (rows.length <= MOST_ROWS * 1.1 || !body.dataset.more || rows[MOST_ROWS].getBoundingClientRect().top < innerHeight * 2) return;
  const begun = ({ dataset: { mark } }) => Number(mark.split("-")[0]);
  const newest = rows.slice(MOST_ROWS).reduce((a, b) => (begun(b) > begun(a) ? b : a)).dataset.mark;
  while (rows[MOST_ROWS - 1].nextElementSibling) rows[MOST_ROWS - 1].nextElementSibling.remove();
  // It goes on with the newest of those that went; what is still there of those around it is left out when it comes.
  const more = document.createElement("tr");
  more.setAttribute("hx-get", `${body.dataset.more}${newest}~`);
  more.setAttribute("hx-trigger", "revealed");
  more.setAttribute("hx-swap", "outerHTML");
  more.insertCell().textContent = "more";
  body.append(more);
  htmx.process(more);
});

// --- menus close on Escape and on a click elsewhere
document.addEventListener("click", (event) => {
  $$("details.menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
});

// --- columns: the boxes become one value
document.addEventListener("submit", (event) => {
  const form = event.target.closest("[data-columns]");
  if (form) form.elements.columns.value = $$("input[type=checkbox]:checked", form).map((box) => box.value).join(",");
  if (event.target.closest("[data-find]")) event.preventDefault();
});

// --- search within a trace: what does not match steps back
document.addEventListener("input", (event) => {
  if (!event.target.closest("[data-find]")) return;
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  $$("[data-row]").forEach((row) => {
    row.classList.toggle("faint", !words.every((word) => row.textContent.toLowerCase().includes(word)));
  });
});

// --- keys
let leader = 0;
const PAGES = { o: 0, c: 1, v: 2, p: 3, b: 4, s: 5, h: 6 };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { $$("details.menu[open]").forEach((menu) => { menu.open = false; $("summary", menu).focus(); }); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  if (event.key === "/" && $("#search")) { event.preventDefault(); $("#search").focus(); return; }
  if (Date.now() - leader < 1500 && event.key in PAGES) { $$("header nav a")[PAGES[event.key]].click(); return; }
  leader = event.key === "g" ? Date.now() : 0;
  if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
});

function step(by) {
  const rows = $$("[data-row]:not(.faint)");
  if (!rows.length) return;
  let at = rows.findIndex((row) => row.contains(document.activeElement));
  if (at < 0) at = rows.findIndex((row) => row.classList.contains("chosen"));
  const row = rows[Math.min(Math.max(at + by, 0), rows.length - 1)];
  const link = $("a", row);
  if (!link) { row.scrollIntoView({ block: "nearest" }); return; }
  link.focus();
  if (link.hasAttribute("hx-get")) link.click();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest(".spans a[hx-get]");
  if (!link) return;
  $$(".spans tr.chosen").forEach((row) => row.classList.remove("chosen"));
  $$(".spans a[aria-current]").forEach((other) => other.removeAttribute("aria-current"));
  link.closest("tr").classList.add("chosen");
  link.setAttribute("aria-current", "true");
});
// Going back to another span shows the page of that span.
window.addEventListener("popstate", () => { if ($(".spans")) location.reload(); });

// --- SQL: Ctrl+Enter runs, Ctrl+Space (or typing) completes
const query = $("#query");
if (query) {
  const words = [
    ...["SELECT", "FROM", "WHERE", "GROUP BY ALL", "ORDER BY", "LIMIT", "sum(", "count(*)", "avg(", "quantile_cont(", "FILTER (WHERE", "DESC NULLS LAST", "date_trunc('day', started_at)"],
    ...$$("[data-table]").map((element) => element.dataset.table),
    ...new Set($$("[data-name]").map((element) => element.textContent)),
  ];
  const list = $("#completions");
  let chosen = 0;
  const begun = () => /[\w.]*$/.exec(query.value.slice(0, query.selectionStart))[0];
  const close = () => { list.hidden = true; query.removeAttribute("aria-activedescendant"); };
  const mark = () => [...list.children].forEach((item, at) => {
    item.setAttribute("aria-selected", at === chosen);
    if (at === chosen) { query.setAttribute("aria-activedescendant", item.id); item.scrollIntoView({ block: "nearest" }); }
  });
  const offer = (always) => {
    const word = begun().toLowerCase();
    const found = word || always ? words.filter((one) => one.toLowerCase().startsWith(word) && one.toLowerCase() !== word).slice(0, 12) : [];
    list.replaceChildren(...found.map((one, at) => Object.assign(document.createElement("li"), { textContent: one, role: "option", id: `completion-${at}` })));
    chosen = 0;
    list.hidden = !found.length;
    if (found.length) mark(); else close();
  };
  const take = () => {
    const word = begun();
    query.setRangeText(list.children[chosen].textContent, query.selectionStart - word.length, query.selectionStart, "end");
    close();
  };
  query.addEventListener("input", () => offer(false));
  query.addEventListener("blur", () => setTimeout(close, 200));
  list.addEventListener("mousedown", (event) => { event.preventDefault(); chosen = [...list.children].indexOf(event.target); if (chosen >= 0) take(); });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); query.form.requestSubmit(); }
    else if (event.key === " " && event.ctrlKey) { event.preventDefault(); offer(true); }
    else if (!list.hidden && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      chosen = (chosen + (event.key === "ArrowDown" ? 1 : -1) + list.children.length) % list.children.length;
      mark();
    }
    else if (!list.hidden && (event.key === "Tab" || event.key === "Enter")) { event.preventDefault(); take(); }
    else if (event.key === "Escape") close();
  });
}
