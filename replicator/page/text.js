// How numbers, times and names are written. What is not known is "unknown", never 0.

export const UNKNOWN = "unknown";
const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
// Control characters, and those that turn or hide the text around them.
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;

const known = (value) => value !== null && value !== undefined;

export const number = (value) => (known(value) ? WHOLE.format(value) : UNKNOWN);

// "1 row", "2 rows", "unknown rows"
export const counted = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

export function rate(value) {
  if (!known(value)) return UNKNOWN;
  if (value > 0 && value < 0.05) return "<0.1/s";
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : WHOLE.format(value)}/s`;
}

export function size(value) {
  if (!known(value)) return UNKNOWN;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? value.toFixed(1) : value} ${UNITS[unit]}`;
}

export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${value.toFixed(0)} s`;
  if (value < 7200) return `${(value / 60).toFixed(0)} min`;
  if (value < 172800) return `${(value / 3600).toFixed(0)} h`;
  return value < 365 * 86400 * 3 ? `${WHOLE.format(value / 86400)} days` : "years";
}

const two = (value) => String(value).padStart(2, "0");

// Local time; the day too where it is not today's.
export function clock(at) {
  const when = new Date(at * 1000);
  const time = `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
  const today = new Date().toDateString() === when.toDateString();
  return today ? time : `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())} ${time}`;
}

export const utc = (at) => `${new Date(at * 1000).toISOString().slice(0, 19)}Z`;

// A long message where only its beginning is needed; the rest goes into a title.
export const brief = (text, most = 180) => (text.length > most ? `${text.slice(0, most)}…` : text);

// A name as it may be shown: nothing in it moves, hides or breaks a line.
export function printable(text) {
  return String(text).replace(UNPRINTABLE, (found) => `\\u{${found.codePointAt(0).toString(16)}}`);
}

// A word for a POSIX shell; null where no shell should be given it.
export function shell(word) {
  if (printable(word) !== word || word === "") return null;
  return /^[\w.@%+=:,/][\w.@%+=:,/-]*$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
