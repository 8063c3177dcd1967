// Search over labels and tokens, a sortable table, and keys. The index comes as script files, since a page
// that is opened from disk may fetch nothing else; each is loaded when a search or a table needs it.
"use strict";
(() => {
  const html = document.documentElement;
  const root = html.dataset.root;
  const block = Number(html.dataset.block);
  const widths = JSON.parse(html.dataset.widths); // [width, number of search files], ascending
  const here = html.dataset.width ? Number(html.dataset.width) : null;
  const [LATENT, LABEL, TOKENS, PROMOTES, DENSITY, STATUS] = [0, 1, 2, 3, 4, 10]; // places in a record
  const MOST = 50; // results shown
  const byId = (id) => document.getElementById(id);
  const folded = (text) => text.normalize("NFKC").toLowerCase();
  const made = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const token = (text) => made("bdi", "token", text);
  const address = (width, latent) => `${root}${width}/${Math.floor(latent / block)}/${latent}.html`;
  // As saekit.wording writes them.
  const forms = {
    text: (value) => value,
    whole: (value) => String(value),
    cosine: (value) => value.toFixed(2).replace("-", "−"),
    share: (value) => {
      const percent = 100 * value;
      return `${percent >= 1 || percent === 0 ? percent.toFixed(1) : Number(percent.toPrecision(2))}%`;
    },
    number: (value) => {
      const size = Math.abs(value);
      if (size === 0) return "0";
      const text = size >= 1e-3 && size < 999.5 ? value.toPrecision(3)
        : size >= 1 && size < 1e6 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
      return text.replace("-", "−");
    },
  };
  const written = (value, form) => (value === null ? "–" : forms[form](value));

  // ------------------------------------------------------------------ the index

  const parts = new Map(); // "width/part" to its promise
  const arrived = new Map(); // "width/part" to its rows
  window.saekit = {
    add(width, part, rows) {
      for (const row of rows) {
        row.text = folded([row[LABEL], ...row[TOKENS], ...row[PROMOTES]].join("\n"));
      }
      arrived.set(`${width}/${part}`, rows);
    },
  };
  function load(width, part) {
    const key = `${width}/${part}`;
    if (!parts.has(key)) {
      parts.set(key, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `${root}${width}/search-${part}.js`;
        script.onload = () => resolve(arrived.get(key));
        script.onerror = () => {
          parts.delete(key);
          reject(new Error(`${width}/search-${part}.js cannot be read`));
        };
        document.head.append(script);
      }));
    }
    return parts.get(key);
  }
  const all = widths.flatMap(([width, n]) => Array.from({ length: n }, (_, part) => [width, part]));
  // The files of this page's width first.
  const order = [...all].sort((a, b) => (b[0] === here) - (a[0] === here) || a[0] - b[0] || a[1] - b[1]);

  // ------------------------------------------------------------------ search

  const form = byId("search"), query = byId("query"), found = byId("found");
  const list = byId("found-list"), count = byId("found-count");
  function score(row, words) {
    if (!words.every((word) => row.text.includes(word))) return 0;
    let sum = 1;
    for (const word of words) {
      if (folded(row[TOKENS][0] ?? "") === word) sum += 8;
      else if (row[TOKENS].some((text) => folded(text) === word)) sum += 4;
      else if (row[PROMOTES].some((text) => folded(text) === word)) sum += 2;
    }
    return sum;
  }
  function matches(words) {
    const hits = [];
    for (const [width, part] of order) {
      for (const row of arrived.get(`${width}/${part}`) ?? []) {
        const numbered = words.length === 1 && words[0] === String(row[LATENT]) ? 100 : 0;
        const value = numbered || score(row, words);
        if (value) hits.push([value, width, row]);
      }
    }
    return hits.sort((a, b) => b[0] - a[0] || a[1] - b[1] || a[2][LATENT] - b[2][LATENT]);
  }
  function result([, width, row]) {
    const link = made("a");
    link.href = address(width, row[LATENT]);
    link.append(made("span", "place", `${width} / ${row[LATENT]}`), made("bdi", "label", row[LABEL]));
    link.append(made("span", "share", written(row[DENSITY], "share")));
    const tokens = made("span", "tokens");
    for (const text of row[TOKENS]) tokens.append(token(text));
    if (row[TOKENS].length) link.append(tokens);
    const item = made("li");
    item.append(link);
    return item;
  }
  const wordsOf = (text) => folded(text).split(/\s+/).filter(Boolean);
  let asked = 0;
  function remember() {
    const text = query.value.trim();
    const hash = new URLSearchParams(location.hash.slice(1));
    text ? hash.set("find", text) : hash.delete("find");
    history.replaceState(null, "", `#${hash}`);
  }
  async function search() {
    const words = wordsOf(query.value), mine = ++asked;
    found.hidden = !words.length;
    if (!words.length) return list.replaceChildren();
    const show = (more) => {
      const hits = matches(words);
      const n = `${hits.length} ${hits.length === 1 ? "latent" : "latents"}`;
      const first = hits.length > MOST ? `, the first ${MOST} shown` : "";
      count.textContent = n + first + more;
      list.replaceChildren(...hits.slice(0, MOST).map(result));
    };
    for (const [place, [width, part]] of order.entries()) {
      if (arrived.has(`${width}/${part}`)) continue;
      try {
        await load(width, part);
      } catch (error) {
        count.textContent = `${error.message}: the search is not complete.`;
        return;
      }
      if (mine !== asked) return;
      // Whoever is among the results already should not lose the place.
      if (!list.contains(document.activeElement)) show(` so far, ${place + 1} of ${order.length} files searched`);
    }
    if (!list.contains(document.activeElement)) show("");
  }
  function close() {
    asked++;
    found.hidden = true;
  }
  if (form) {
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      list.querySelector("a")?.click();
    });
    let later = 0;
    query.addEventListener("input", () => {
      clearTimeout(later);
      later = setTimeout(() => { remember(); search(); }, 120);
    });
    query.addEventListener("focus", () => { if (found.hidden) search(); });
    document.addEventListener("click", (event) => {
      if (!found.contains(event.target) && !form.contains(event.target)) close();
    });
    // Back from a result, the search is as it was left.
    query.value = new URLSearchParams(location.hash.slice(1)).get("find") ?? "";
    if (query.value) search();
  }

  // ------------------------------------------------------------------ keys

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focus = document.activeElement;
    const typing = focus && (focus.matches("input, select, textarea") || focus.isContentEditable);
    if (event.key === "Escape" && !found.hidden) {
      if (found.contains(focus)) query.focus();
      return close();
    }
    if (!found.hidden && (focus === query || list.contains(focus)) && event.key.match(/^Arrow(Down|Up)$/)) {
      const links = [...list.querySelectorAll("a")];
      const next = links.indexOf(focus) + (event.key === "ArrowDown" ? 1 : -1);
      event.preventDefault();
      return (next < 0 ? query : links[Math.min(next, links.length - 1)])?.focus();
    }
    if (typing) return;
    if (event.key === "/") {
      event.preventDefault();
      return query.select();
    }
    const rel = { ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]", r: "#random" }[event.key];
    // Arrows scroll what has the focus, where it is wider than the page.
    if (rel && !(focus?.matches("[role=region], pre") && event.key !== "r")) document.querySelector(rel)?.click();
  });

  // ------------------------------------------------------------------ the table

  const table = byId("latents");
  if (!table) return;
  const filter = byId("filter"), shown = byId("shown"), pager = byId("pager"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const columns = heads.map((head) => ({ at: Number(head.dataset.place), form: head.dataset.form }));
  for (const column of columns) column.numeric = column.form !== "text" && column.form !== "tokens";
  const still = { rows: [...body.rows], shown: shown.textContent, pages: [...pager.childNodes] };
  const size = Number(table.dataset.rows);
  const state = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  function go(change) {
    const next = { ...state(), ...change };
    for (const name of Object.keys(next)) if (next[name] === "" || next[name] === null) delete next[name];
    location.hash = new URLSearchParams(next); // an entry of the history, so that "back" goes back
  }
  heads.forEach((head, place) => {
    const button = made("button", "", head.textContent);
    button.type = "button";
    button.addEventListener("click", () => {
      const { sort, down } = state();
      const again = sort === String(place);
      // Numbers begin with the greatest, the rest with the first.
      go({ sort: place, down: (again ? !down : columns[place].numeric && place > 0) ? "1" : "", page: "" });
    });
    head.replaceChildren(button);
  });
  filter.hidden = false;
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("reset", () => go({ q: "", status: "", page: "" }));
  let soon = 0;
  filter.addEventListener("input", () => {
    clearTimeout(soon);
    soon = setTimeout(() => go({ q: filter.q.value.trim(), status: filter.status.value, page: "" }), 200);
  });
  function compare(place, down) {
    const by = columns[place].at, sign = down ? -1 : 1;
    const value = (row) => (by === TOKENS ? row[by].join(" ") : row[by]);
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      const missing = (x === null || x === "") - (y === null || y === ""); // last in both directions
      const ordered = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return missing || sign * ordered || a[LATENT] - b[LATENT];
    };
  }
  function line(row) {
    const cells = columns.map(({ at, form, numeric }) => {
      const cell = made("td", numeric ? "number" : "");
      if (at === LATENT) {
        const link = made("a", "", row[LATENT]);
        link.href = address(here, row[LATENT]);
        cell.append(link);
      } else if (at === LABEL) cell.append(made("bdi", "", row[LABEL]));
      else if (form === "tokens") for (const text of row[at]) cell.append(token(text), " ");
      else cell.textContent = written(row[at], form);
      return cell;
    });
    const tr = made("tr", row[STATUS] === "dead" ? "dead" : "");
    tr.append(...cells);
    return tr;
  }
  function pages(page, last) {
    const near = [...new Set([1, page - 2, page - 1, page, page + 1, page + 2, last])];
    const items = [];
    let before = 0;
    for (const one of near.filter((n) => n >= 1 && n <= last)) {
      if (one > before + 1) items.push(made("span", "", "…"));
      const button = made("button", "", one);
      button.type = "button";
      if (one === page) button.setAttribute("aria-current", "page");
      button.addEventListener("click", () => { go({ page: one }); table.scrollIntoView(); });
      items.push(button);
      before = one;
    }
    pager.replaceChildren(...items);
  }
  let turn = 0;
  async function draw() {
    const wanted = state(), mine = ++turn;
    filter.q.value = wanted.q ?? "";
    filter.status.value = wanted.status ?? "";
    heads.forEach((head, place) => {
      head.removeAttribute("aria-sort");
      if (wanted.sort === String(place)) head.setAttribute("aria-sort", wanted.down ? "descending" : "ascending");
    });
    if (!("sort" in wanted || wanted.q || wanted.status || wanted.page)) {
      body.replaceChildren(...still.rows);
      pager.replaceChildren(...still.pages);
      shown.textContent = still.shown;
      return;
    }
    const rows = [], own = all.filter(([width]) => width === here);
    try {
      for (const [place, [width, part]] of own.entries()) {
        rows.push(...(await load(width, part)));
        if (mine !== turn) return;
        if (own.length > 8) shown.textContent = `Reading the table: ${place + 1} of ${own.length} files.`;
      }
    } catch (error) {
      shown.textContent = `${error.message}: the table cannot be sorted.`;
      return;
    }
    const words = wordsOf(wanted.q ?? "");
    const kept = rows.filter((row) =>
      words.every((word) => row.text.includes(word)) &&
      (!wanted.status || row[STATUS] === wanted.status));
    kept.sort(compare(Number(wanted.sort ?? 0), wanted.down));
    const last = Math.max(1, Math.ceil(kept.length / size));
    const page = Math.min(last, Math.max(1, Number(wanted.page) || 1));
    body.replaceChildren(...kept.slice((page - 1) * size, page * size).map(line));
    shown.textContent = `${kept.length} ${kept.length === 1 ? "latent" : "latents"}, page ${page} of ${last}.`;
    pages(page, last);
  }
  addEventListener("hashchange", draw);
  draw();
})();
