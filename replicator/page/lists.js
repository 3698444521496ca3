// Tables, streams, what was kept aside, what happened, what operators did.

import { command, split, words } from "./commands.js";
import { byId, icon, make, redraw, setFigure, setState, setText } from "./dom.js";
import { brief, clock, counted, number, printable, seconds, UNKNOWN, utc } from "./text.js";

const ROWS_AT_ONCE = 100;
const NOT_READ = "not read yet";
const RANK = { failed: 0, degraded: 1, paused: 2, unknown: 3, ok: 4 };
const shown = { rows: ROWS_AT_ONCE, filter: "", view: null };

export function prepareTables() {
  byId("tables-filter").addEventListener("input", (event) => {
    shown.filter = event.target.value.trim().toLowerCase();
    shown.rows = ROWS_AT_ONCE;
    if (shown.view) drawTables(shown.view);
  });
  byId("tables-more").addEventListener("click", () => {
    shown.rows += ROWS_AT_ONCE;
    drawTables(shown.view);
  });
}

export function drawTables(view) {
  shown.view = view;
  const verified = view.verify.last_at === null ? null : clock(Date.parse(view.verify.last_at) / 1000);
  const all = rowsOf(view.tables).map((row) => ({ ...row, ...delivery(row) }));
  const found = all.filter((row) => `${row.table} ${row.word}`.toLowerCase().includes(shown.filter));
  found.sort((a, b) => RANK[a.state] - RANK[b.state] || (a.table < b.table ? -1 : 1));
  const body = byId("tables").tBodies[0];
  fill(body, found.slice(0, shown.rows), (row) => row.table, tableRow, (cells, row) => {
    setState(cells[1].firstChild, row.state, row.word);
    setText(cells[1].lastChild, row.more);
    for (const [n, value] of [row.pending, row.parked, row.log_rows, row.sink_rows, row.checkpoint].entries()) {
      setFigure(cells[n + 2], number(value));
    }
    cells[3].classList.toggle("attention", row.parked > 0);
    setFigure(cells[7], verify(row.mismatches, verified));
    cells[7].classList.toggle("attention", row.mismatches > 0);
  });
  const left = found.length - Math.min(found.length, shown.rows);
  setText(byId("tables-count"), shown.filter ? `${number(found.length)} of ${number(all.length)}` : `${number(all.length)}`);
  const more = byId("tables-more");
  more.hidden = left === 0;
  setText(more, `Show ${number(Math.min(left, ROWS_AT_ONCE))} more of ${number(left)}`);
  if (!found.length) note(body, 8, all.length ? "No table fits the filter." : "No table has been written yet.");
}

function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns.table.map((_, n) => Object.fromEntries(names.map((name) => [name, columns[name][n]])));
}

function tableRow(row) {
  const cells = [make("th", { scope: "row", title: printable(row.table) }, make("span", { class: "name" }, printable(row.table))),
    make("td", {}, make("span", { class: "state-word" }), make("span", { class: "small why" }))];
  for (let n = 0; n < 5; n += 1) cells.push(make("td", { class: "n" }));
  cells.push(make("td", {}));
  return make("tr", {}, ...cells);
}

function delivery(row) {
  const next = row.next_try_seconds === null ? "" : `next try in ${seconds(row.next_try_seconds)}`;
  if (row.stopped) return { state: "failed", word: "stopped", more: printable(row.stopped) };
  if (row.paused) return { state: "paused", word: "paused", more: "" };
  if (row.circuit === "open") return { state: "degraded", word: "waits for ClickHouse", more: next };
  if (row.last_error) return { state: "degraded", word: `failed ${counted(row.attempt, "time")}`, more: next };
  if (row.circuit === null) return { state: "unknown", word: UNKNOWN, more: "" };
  return { state: "ok", word: "goes on", more: "" };
}

function verify(mismatches, at) {
  if (at === null) return "never";
  if (mismatches === null) return UNKNOWN;
  return mismatches ? `${number(mismatches)} differ, ${at}` : `equal, ${at}`;
}

export function drawStreams(view) {
  const body = byId("streams").tBodies[0];
  fill(body, view.streams, (s) => s.stream, (s) => make("tr", {},
    make("th", { scope: "row", title: printable(s.stream) }, make("span", { class: "name" }, printable(s.stream))),
    make("td", { class: "n" }), make("td", { class: "id" }), make("td", { class: "n" })), (cells, s) => {
    setFigure(cells[1], number(s.backlog_entries));
    setFigure(cells[2], s.last_entry_id === "0-0" ? NOT_READ : (s.last_entry_id ?? NOT_READ), NOT_READ);
    setFigure(cells[3], number(s.stream_epoch));
  });
  const left = view.streams_total - view.streams.length;
  setText(byId("streams-count"), left > 0 ? `the first ${number(view.streams.length)} of ${number(view.streams_total)}` : `${number(view.streams_total)}`);
  if (!view.streams.length) note(body, 4, "No stream is configured.");
}

// Rows are kept by their key, and moved or changed only where something is different.
function fill(body, items, keyOf, build, change) {
  body.rowsByKey ??= new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of body.rowsByKey) {
    if (!wanted.has(key)) {
      row.remove();
      body.rowsByKey.delete(key);
    }
  }
  body.querySelector(".note")?.remove();
  items.forEach((item, place) => {
    const key = keyOf(item);
    let row = body.rowsByKey.get(key);
    if (!row) body.rowsByKey.set(key, (row = build(item)));
    if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null);
    change(row.children, item);
  });
}

function note(body, columns, text) {
  if (!body.querySelector(".note")) body.append(make("tr", { class: "note" }, make("td", { colspan: columns }, text)));
}

const KEPT = [
  { name: "failed", title: "Failed", none: "Nothing that ClickHouse did not take.", count: (v) => v.failed_syncs.open, state: "degraded",
    what: (n, v) => `${counted(n, "range")} with ${counted(v.failed_syncs.rows, "row")} that ClickHouse did not take`,
    item: (row) => [`${row.table}, offsets ${number(row.first_offset)} to ${number(row.last_offset)}, ${counted(row.row_count, "row")}`,
      `${row.reason}${row.error_code === null ? "" : ` (code ${row.error_code})`}: ${row.error_message ?? ""}`, row.first_failed_at],
    lines: (row) => [words("failed", "show", row.id), words("failed", "retry", row.id)], all: ["failed", "list"] },
  { name: "rejected", title: "Rejected", none: "No entry that could not be logged.", count: (v) => v.rejected_entries.open, state: "degraded",
    what: (n) => `${counted(n, "entry", "entries")} that could not be logged`,
    item: (row) => [`${row.stream}, entry ${row.entry_id}`, row.reason, row.rejected_at],
    lines: (row) => [words("rejected", "show", row.id), words("rejected", "retry", row.id)], all: ["rejected", "list"] },
  { name: "gaps", title: "Gaps", none: "No entry left Redis before it was read.", count: (v) => v.gaps.open, state: "failed",
    what: (n, v) => `${counted(v.gaps.entries_lost, "entry", "entries")} left Redis before they were read, in ${counted(n, "gap")}`,
    item: (row) => [`${row.stream}, after ${row.after_entry_id ?? "the beginning"} and before ${row.before_entry_id ?? "what is there now"}`,
      `${counted(row.entries_lost, "entry", "entries")}: ${row.cause}`, row.found_at],
    lines: (row) => [words("gaps", "ack", row.id)], all: ["gaps", "list"] },
];

export function drawKept(view) {
  const told = KEPT.map((kind) => [kind.name, kind.count(view), view.kept[kind.name], view.failed_syncs.rows, view.gaps.entries_lost]);
  redraw(byId("kept"), [told, view.command], () => KEPT.map((kind) => kept(kind, view)));
}

function kept(kind, view) {
  const count = kind.count(view);
  const rows = view.kept[kind.name];
  const state = make("p", { class: "state-word" });
  if (count === null) setState(state, "unknown", UNKNOWN);
  else setState(state, count ? kind.state : "ok", count ? kind.what(count, view) : kind.none);
  const section = make("section", { "aria-labelledby": `kept-${kind.name}`, class: "kept-kind" },
    make("h3", { id: `kept-${kind.name}` }, kind.title), state);
  if (rows.length) section.append(make("ol", { class: "kept-rows" }, ...rows.map((row) => keptRow(kind, row))));
  if (count > rows.length) section.append(make("p", { class: "small" }, `and ${number(count - rows.length)} more:`), command(words(...kind.all)));
  return section;
}

function keptRow(kind, row) {
  const [what, why, at] = kind.item(row);
  const when = Date.parse(at) / 1000;
  return make("li", {},
    make("p", {}, make("span", { class: "id" }, `${row.id} `), printable(what)),
    make("p", { class: "why small", title: why.length > 180 ? printable(why) : null }, brief(printable(why)), " ", make("time", { datetime: utc(when) }, clock(when))),
    ...kind.lines(row).map((line) => command(line)));
}

const TOLD_AT_FIRST = 12;
const opened = new Set();

// A list that begins short, with a button for the rest of it.
function drawTold(name, all, item, none) {
  const list = byId(name);
  const more = byId(`${name}-more`);
  const few = opened.has(name) ? all : all.slice(0, TOLD_AT_FIRST);
  redraw(list, few, () => (few.length ? few.map(item) : [make("li", { class: "small" }, none)]));
  more.hidden = few.length === all.length;
  setText(more, `Show all ${number(all.length)}`);
  more.onclick = () => {
    opened.add(name);
    drawTold(name, all, item, none);
  };
}

const WHAT = { began: "began", ended: "ended", happened: "" };

export function drawEvents(view) {
  drawTold("events", view.events, (event) => {
    const state = event.what === "ended" ? "ok" : event.state;
    const whole = printable(split(event.text).said);
    const said = `${WHAT[event.what]}${WHAT[event.what] ? ": " : ""}${brief(whole)}`;
    return make("li", { "data-state": state }, icon(state), make("time", { datetime: utc(event.at) }, clock(event.at)),
      make("span", { title: whole.length > 180 ? whole : null }, said));
  }, "Nothing yet.");
}

export function drawActions(view) {
  drawTold("actions", view.actions, (action) => {
    const at = Date.parse(action.asked_at) / 1000;
    return make("li", {}, make("time", { datetime: utc(at) }, clock(at)),
      make("span", {}, make("b", {}, printable(`${action.action} ${action.subject ?? ""}`.trim())),
        printable(` by ${action.actor}: ${action.effect ?? ""}`)));
  }, "Nobody has asked for anything yet.");
}
