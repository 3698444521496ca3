// The last hour as three small plots over the same time, drawn by uPlot; each says its figures in words, too.

import { make, setFigure, setText } from "./dom.js";
import { clock, number, rate, seconds } from "./text.js";

const HOUR = 3600;
const BREAK_SECONDS = 60; // points further apart than this are not joined
const SHORTEST = 300;
const HEIGHT = 132;
const COLUMNS = { at: 0, lagChanges: 1, lagSeconds: 2, read: 3, delivered: 4 };

const PLOTS = [
  { id: "lag-seconds", title: "Lag", unit: "age of the oldest undelivered change", say: seconds,
    series: [{ column: COLUMNS.lagSeconds, name: "lag", colour: "--accent", fill: true }] },
  { id: "lag-changes", title: "Lag", unit: "changes not delivered", say: number,
    series: [{ column: COLUMNS.lagChanges, name: "lag", colour: "--accent", fill: true }] },
  { id: "rates", title: "Rate", unit: "per second", say: rate, most: "Delivered at most",
    series: [{ column: COLUMNS.read, name: "read from Redis", colour: "--muted", dash: [4, 3] },
      { column: COLUMNS.delivered, name: "delivered to ClickHouse", colour: "--accent" }] },
];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Plots {
  constructor(root) {
    this.points = [];
    this.plots = PLOTS.map((described) => new Plot(described, root));
    const resize = new ResizeObserver(() => this.plots.forEach((plot) => plot.resize()));
    resize.observe(root);
  }

  hour(points) {
    this.points = points;
    this.draw();
  }

  add(point) {
    const last = this.points.at(-1);
    if (last && last[0] >= point[0]) return;
    this.points.push(point);
    while (this.points[0][0] < point[0] - HOUR) this.points.shift();
    this.draw();
  }

  draw() {
    this.plots.forEach((plot) => plot.draw(this.points));
  }
}

class Plot {
  constructor(described, root) {
    this.described = described;
    this.now = make("p", { class: "plot-now" });
    this.surface = make("div", { class: "plot-surface", "aria-hidden": "true" });
    this.words = make("p", { class: "small plot-words" });
    const title = make("h3", {}, described.title, " ", make("small", {}, described.unit));
    const legend = described.series.length > 1
      ? [make("p", { class: "small plot-legend" }, ...described.series.flatMap((s) => [
        make("span", { class: s.dash ? "key key-dash" : "key", "aria-hidden": "true" }), `${s.name} `]))] : [];
    root.append(make("figure", { class: "plot", id: `plot-${described.id}` },
      make("div", { class: "plot-head" }, title, this.now), this.surface, make("figcaption", {}, ...legend, this.words)));
    this.latest = null;
    this.chart = null;
  }

  draw(points) {
    const data = columns(points, this.described.series.map((s) => s.column));
    if (this.chart === null) this.chart = new uPlot(this.options(), data, this.surface);
    else this.chart.setData(data);
    this.latest = points.at(-1) ?? null;
    this.say();
    setText(this.words, this.worst(points));
  }

  // What the cursor stands on, or else the newest.
  say() {
    const at = this.chart?.cursor.idx;
    const pick = (s, n) => (at === null || at === undefined ? this.latest?.[s.column] : this.chart.data[n + 1][at]);
    const said = this.described.series.map((s, n) => this.described.say(pick(s, n)));
    const when = at === null || at === undefined ? "" : ` at ${clock(this.chart.data[0][at])}`;
    setFigure(this.now, said.join(" · ") + when);
  }

  worst(points) {
    const { series, say } = this.described;
    const column = series.at(-1).column;
    const known = points.filter((point) => point[column] !== null);
    if (!known.length) return "Nothing is known of the last hour.";
    const most = known.reduce((a, b) => (b[column] > a[column] ? b : a));
    const since = points[0][0] > Date.now() / 1000 - HOUR + 120 ? ` Known since ${clock(points[0][0])}.` : "";
    return `${this.described.most ?? "At most"} ${say(most[column])}, at ${clock(most[0])}.${since}`;
  }

  resize() {
    const width = this.surface.clientWidth;
    if (this.chart !== null && width > 0 && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  options() {
    const axis = { stroke: () => colour("--muted"), font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false } };
    const short = (value) => Intl.NumberFormat("en-US", { notation: "compact" }).format(value);
    return {
      width: this.surface.clientWidth || 320, height: HEIGHT, padding: [8, 20, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "hour" }, y: false, points: { size: 6 }, drag: { setScale: false, x: false } },
      scales: { x: { time: true, range: (_, first, last) => span(first, last) },
        y: { range: (_, __, most) => [0, Math.max(1, (most ?? 0) * 1.1)] } },
      axes: [{ ...axis, space: 60, size: 24, values: (_, ticks) => ticks.map((at) => clock(at).slice(-8, -3)) },
        { ...axis, size: 42, space: 32, values: (_, ticks) => ticks.map(short) }],
      series: [{}, ...this.described.series.map((s) => ({
        stroke: () => colour(s.colour), width: 1.5, dash: s.dash, spanGaps: false, points: { show: false },
        fill: s.fill ? () => colour("--accent-wash") : undefined }))],
      hooks: { setCursor: [() => this.say()] },
    };
  }
}

// The hour that ends with the newest point; less of it where less is known, so that a young service shows something.
function span(first, last) {
  const end = last ?? Date.now() / 1000;
  const known = Math.max(end - (first ?? end), SHORTEST);
  return [end - Math.min(HOUR, known), end];
}

// uPlot's columns, with a hole where points are missing.
function columns(points, wanted) {
  const data = [[], ...wanted.map(() => [])];
  let before = null;
  for (const point of points) {
    if (before !== null && point[0] - before > BREAK_SECONDS) {
      data[0].push(before + 1);
      wanted.forEach((_, n) => data[n + 1].push(null));
    }
    data[0].push(point[0]);
    wanted.forEach((column, n) => data[n + 1].push(point[column]));
    before = point[0];
  }
  return data;
}
