// The state in words, the flow as a picture, and the figures under it.

import { command, split } from "./commands.js";
import { byId, icon, make, redraw, setFigure, setState, setText } from "./dom.js";
import { clock, counted, number, printable, rate, seconds, size, UNKNOWN, utc } from "./text.js";

const SUMMARY = {
  ok: "Everything works.",
  degraded: "It works, but not all is well.",
  failed: "It needs somebody now.",
};

const TIGHT_SECONDS = 3600; // as `status` judges it

export function drawVerdict(view) {
  setState(byId("state"), view.state, view.state);
  const lag = view.sink.lag_changes;
  const ends = lag === 0 ? "Everything logged is in ClickHouse." : lag === null ? "How far delivery is, is unknown."
    : `${counted(lag, "logged change is", "logged changes are")} not in ClickHouse yet.`;
  setText(byId("summary"), `${SUMMARY[view.state]} ${ends}`);
  redraw(byId("reasons"), [view.reasons, view.reasons_total, view.command], () => {
    const items = view.reasons.map(reason);
    const rest = view.reasons_total - view.reasons.length;
    if (rest > 0) items.push(make("li", { class: "small" }, `and ${counted(rest, "more reason", "more reasons")} like these`));
    return items;
  });
}

function reason(found) {
  const { said, found: lines } = split(found.text);
  return make("li", { class: "reason", "data-state": found.state },
    icon(found.state),
    make("div", {},
      make("p", {}, make("span", { class: "unseen" }, `${found.state}: `), printable(said), " ",
        make("time", { class: "small", datetime: utc(found.since) }, `since ${clock(found.since)}`)),
      ...lines.map((line) => command(printable(line)))));
}

export function drawFlow(view) {
  const { redis, clickhouse, log, sink, streams, rates } = view;
  engine(byId("redis-state"), redis);
  engine(byId("sink-state"), clickhouse);
  const capture = loop(view, "capture");
  const deliver = loop(view, "deliver");
  const tight = view.runway.disk_seconds !== null && view.runway.disk_seconds < TIGHT_SECONDS;
  setState(byId("log-state"), tight ? "degraded" : view.disk_free_bytes === null ? "unknown" : "ok", `${size(view.disk_free_bytes)} of disk free`);
  setFigure(byId("redis-backlog"), number(total(streams.map((s) => s.backlog_entries))));
  setText(byId("redis-more"), `${counted(view.streams_total, "stream")}${version(redis)}`);
  setFigure(byId("log-head"), number(log.head_offset));
  setText(byId("log-more"), `${counted(log.changes, "change")} · ${size(log.bytes)}`);
  setFigure(byId("sink-confirmed"), number(sink.confirmed_offset));
  setText(byId("sink-more"), `checkpoint ${number(sink.checkpoint_offset)}${version(clickhouse)}`);
  edge("capture", rates.entries_read, stopped(capture, redis, view.paused.includes("capture")));
  const waits = sink.circuit === "open" ? "waits for ClickHouse" : "";
  edge("deliver", rates.rows_delivered, stopped(deliver, clickhouse, view.paused.includes("deliver")) || waits);
}

const version = (engineStatus) => (engineStatus.version ? ` · version ${printable(engineStatus.version)}` : "");
const loop = (view, name) => view.loops.find((found) => found.loop === name);

function engine(element, status) {
  if (status.reachable === null) setState(element, "unknown", "not asked yet");
  else if (status.reachable) setState(element, "ok", "answers");
  else setState(element, status.refused ? "failed" : "degraded", status.refused ? "refuses us" : "does not answer");
}

// Why a loop does not move anything, or "".
function stopped(found, status, paused) {
  if (paused) return "paused";
  if (found === undefined) return "not begun";
  if (!found.running) return "down";
  return status.reachable === false ? "cannot go on" : "";
}

function edge(name, perSecond, why) {
  const element = byId(`edge-${name}`);
  const flows = why ? "stopped" : perSecond === null ? "unknown" : perSecond > 0 ? "moving" : "still";
  element.dataset.flow = flows;
  element.dataset.speed = perSecond > 10000 ? "3" : perSecond > 100 ? "2" : "1";
  setFigure(byId(`${name}-rate`), rate(perSecond), UNKNOWN);
  setState(byId(`${name}-name`), why ? (why === "paused" ? "paused" : "degraded") : "none", why ? `${name}: ${why}` : name);
}

const total = (values) => (values.includes(null) ? null : values.reduce((a, b) => a + b, 0));

// What is not foreseen is said in words: it never comes, there is no limit, or nothing is known.
function foreseen(runway, what, never) {
  return { never, unlimited: "no limit" }[runway[what]] || seconds(runway[`${what}_seconds`]);
}

export function drawFigures(view) {
  const { sink, runway, verify, failed_syncs: failed } = view;
  const verified = verify.last_at === null ? "never" : verify.mismatches ? `${number(verify.mismatches)} differ` : "equal";
  const figures = [
    ["Lag, changes", number(sink.lag_changes), "logged and not in ClickHouse"],
    ["Lag, time", seconds(sink.lag_seconds), "age of the oldest of them"],
    ["Parked", counted(failed.rows, "row"), failed.open ? `the oldest ${seconds(failed.oldest_age_seconds)} old` : "kept aside, nothing lost"],
    ["Caught up in", foreseen(runway, "catch_up", "never"), "at today's rate"],
    ["Disk lasts", foreseen(runway, "disk", "not filling"), `${size(view.disk_free_bytes)} free`],
    ["Redis lasts", foreseen(runway, "redis", "not filling"), "until its memory is full"],
    ["Last verify", verified, verify.last_at === null ? "replicator verify" : clock(Date.parse(verify.last_at) / 1000)],
  ];
  redraw(byId("figures"), figures, () => figures.map(([name, value, more]) =>
    make("div", {}, make("dt", {}, name), make("dd", { class: value === UNKNOWN ? "unknown" : null }, value),
      make("dd", { class: "small" }, more))));
}

export function drawService(view) {
  redraw(byId("loops"), view.loops.map((l) => [l.loop, l.running, l.restarts, l.waits_for_engine]), () => {
    const fine = view.loops.filter((found) => found.running && !found.restarts).map((found) => found.loop);
    const others = view.loops.filter((found) => !fine.includes(found.loop));
    return [...others.map(loopItem), ...(fine.length ? [told("ok", `${others.length ? "" : "All loops run: "}${fine.join(", ")}${others.length ? " run" : ""}`)] : [])];
  });
  setText(byId("service"), `Version ${view.version}, process ${view.pid}, up for ${seconds(view.uptime_seconds)}, ` +
    `instance ${view.instance_id}. Database ${printable(view.database)}.`);
}

function loopItem(found) {
  const state = found.running ? "ok" : found.waits_for_engine ? "degraded" : "failed";
  const again = found.restarts ? `, was started again ${counted(found.restarts, "time")}` : "";
  return told(state, `${found.loop} ${found.running ? "runs" : "is down"}${again}`);
}

function told(state, text) {
  const word = make("span", { class: "state-word" });
  setState(word, state, text);
  return make("li", {}, word);
}
