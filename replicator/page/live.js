// The stream of frames: server-sent events read with fetch, because the token travels in a header, which EventSource
// cannot send. Reconnects with growing waits; says at every moment whether what is shown is live.

const SILENT_MS = 15000; // the service sends a beat every 5 s
const WAITS_MS = [1000, 2000, 4000, 8000, 10000];

export class Live {
  // on: {hour(points), frame(view), state(name, detail), refused(message)}
  constructor(on) {
    this.on = on;
    this.token = null;
    this.attempt = 0;
    this.abort = null;
    this.timer = null;
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  start(token) {
    this.stop();
    this.token = token;
    this.attempt = 0;
    this.connect();
  }

  stop() {
    this.token = null;
    clearTimeout(this.timer);
    this.timer = null;
    this.abort?.abort();
  }

  hurry() {
    if (this.timer !== null && this.token !== null) this.connect();
  }

  async connect() {
    clearTimeout(this.timer);
    this.timer = null;
    const abort = (this.abort = new AbortController());
    this.on.state("connecting", "");
    let why = "the connection was closed";
    try {
      why = await this.read(abort);
    } catch (error) {
      why = error.told ? error.message : "the service does not answer";
      if (error.status === 401) return this.refuse(abort, error.message);
    }
    if (abort.signal.aborted && this.abort !== abort) return undefined; // another took its place, or it was stopped
    if (this.token !== null) this.wait(why);
    return undefined;
  }

  refuse(abort, message) {
    if (this.abort !== abort) return;
    this.stop();
    this.on.refused(message);
  }

  wait(why) {
    const wait = WAITS_MS[Math.min(this.attempt, WAITS_MS.length - 1)];
    this.attempt += 1;
    this.on.state("stale", `${why}; trying again in ${wait / 1000} s`);
    this.timer = setTimeout(() => this.connect(), wait);
  }

  // Returns why the stream ended.
  async read(abort) {
    let silence = setTimeout(() => abort.abort(), SILENT_MS);
    try {
      const answer = await fetch("api/v1/live", {
        headers: { Authorization: `Bearer ${this.token}` },
        signal: abort.signal,
        cache: "no-store",
        credentials: "omit",
      });
      if (!answer.ok) throw await refusal(answer);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "the service closed the connection";
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENT_MS);
        const pieces = (rest + value).split("\n\n");
        rest = pieces.pop();
        for (const piece of pieces) {
          const ended = this.take(piece);
          if (ended) return ended;
        }
      }
    } finally {
      clearTimeout(silence);
      abort.abort(); // and so let go of the connection
    }
  }

  take(piece) {
    const [, name, body] = piece.match(/^event: (\w+)\ndata: (.*)$/s) ?? [];
    if (name === "end") return body === '"token"' ? "the token is no longer known" : "the service is stopping";
    if (name === "hour") this.on.hour(JSON.parse(body));
    if (name === "frame") {
      this.attempt = 0;
      this.on.frame(JSON.parse(body));
    }
    return null;
  }
}

async function refusal(answer) {
  let message = `the service answered ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // not one of the service's own answers
  }
  return Object.assign(new Error(message), { told: true, status: answer.status });
}
